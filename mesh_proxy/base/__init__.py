"""Leaves of the sidecar: errors and small shared values; standard library only."""
