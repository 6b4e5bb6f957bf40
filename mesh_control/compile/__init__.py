"""From the index to what a sidecar receives. Pure."""
