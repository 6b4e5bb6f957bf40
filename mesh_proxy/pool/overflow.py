"""What a circuit breaker says."""

from __future__ import annotations


class Overflow(Exception):
    """A limit of the circuit breaker is reached; the message names it."""
