"""Demonstrations of the mesh."""
