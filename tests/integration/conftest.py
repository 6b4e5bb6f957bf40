"""Shared by the integration tests."""

# Its pytest plugin imports it after the last test otherwise, and warns then: a sidecar's gc.freeze() hides
# who refers to trio's random numbers.
import hypothesis  # noqa: F401
