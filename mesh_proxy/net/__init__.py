"""Sockets, TLS and time: the edge of the sidecar where bytes and clocks come in."""
