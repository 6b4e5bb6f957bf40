"""The rules that every Kubernetes object obeys, as pure functions: no I/O, no clock."""
