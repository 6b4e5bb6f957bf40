"""What the cluster looks like now: a synchronous state machine over objects. Pure."""

from mesh_control.index.changes import Changes
from mesh_control.index.state import Index, Problem
from mesh_control.index.wire import decode

__all__ = ["Changes", "Index", "Problem", "decode"]
