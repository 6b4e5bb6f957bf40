"""Benchmarks of a pair of sidecars beside the same pair made of Envoy and of HAProxy."""
