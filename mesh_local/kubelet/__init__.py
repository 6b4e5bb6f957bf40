"""The node: runs pods as processes in namespaces and reports their status."""
