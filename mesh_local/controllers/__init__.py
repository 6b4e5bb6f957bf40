"""Control loops over the API: what kube-controller-manager and kube-scheduler do."""
