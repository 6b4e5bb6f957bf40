"""What the limits of a sidecar mean for its HTTP/2 connections."""

from __future__ import annotations

from mesh_api.limits import Limits
from mesh_proxy.http2.budget import Budget, SessionSettings
from mesh_proxy.wire.http2.seam import Http2Limits


def http2_limits(limits: Limits) -> Http2Limits:
    """For an engine."""
    return Http2Limits(
        streams=limits.streams,
        stream_window=limits.stream_window_bytes,
        connection_window=limits.connection_window_bytes,
        head_bytes=limits.head_bytes,
        header_count=limits.header_count,
        continuations=limits.continuations,
        resets_burst=limits.resets_burst,
        resets_per_s=limits.resets_per_second,
        control_burst=limits.control_burst,
        control_per_s=limits.control_per_second,
        queued_control=limits.queued_control,
    )


def session_settings(limits: Limits) -> SessionSettings:
    """For a session."""
    return SessionSettings(
        head_s=limits.head_seconds,
        streams=limits.streams,
        held_bytes=limits.pending_bytes,
    )


def http2_budget(limits: Limits) -> Budget:
    """For all sessions of the process."""
    return Budget(limits.pending_total_bytes)
