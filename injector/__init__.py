"""Getting the sidecar into a pod: the pod patch, its webhook, and the pod's network rules."""
