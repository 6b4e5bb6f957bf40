"""Pods in network namespaces of this machine, with real rules, sidecars and a CA; and a demo of them."""
