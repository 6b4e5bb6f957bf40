"""Applications that know nothing of a mesh; each file runs by itself."""
