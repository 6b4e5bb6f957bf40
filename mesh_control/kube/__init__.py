"""The API server as the control plane sees it: list, watch, patch, review, lease."""
