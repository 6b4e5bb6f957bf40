"""Metrics, the access log and the application log of a sidecar."""
