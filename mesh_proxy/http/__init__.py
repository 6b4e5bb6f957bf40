"""HTTP/1.1 through the sidecar: one task per downstream connection runs the request loop."""
