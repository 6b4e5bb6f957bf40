"""The sidecar: takes a pod's TCP traffic in both directions and applies mTLS and traffic policy to it."""
