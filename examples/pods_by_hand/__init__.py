"""Two pods on the local cluster with sidecars written by hand: what injection will write by itself."""
