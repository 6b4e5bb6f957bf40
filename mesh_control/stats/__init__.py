"""East-west statistics of the mesh: what sidecars report, over the last minutes. Pure."""
