"""Cluster DNS for Services."""
