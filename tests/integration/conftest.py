"""Shared by the integration tests."""

# Its pytest plugin imports it after the last test otherwise, and warns then: a control plane's gc.freeze()
# hides who refers to trio's random numbers.
import hypothesis  # noqa: F401
import pytest

from mesh_proxy.wire.http2.engines import NAMES
from tests.support import mesh


@pytest.fixture(params=NAMES)
def http2_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with each HTTP/2 engine in its sidecars."""
    monkeypatch.setattr(mesh, "HTTP2_ENGINE", request.param)
