"""The sidecar's own small HTTP servers: admin, health and metrics."""
