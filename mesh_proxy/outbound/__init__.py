"""Connections that this pod's programs make."""
