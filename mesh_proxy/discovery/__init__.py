"""What the sidecar knows of the mesh, and where it learns it."""
