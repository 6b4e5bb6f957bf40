"""One local cluster, and one with a mesh, for all end-to-end tests that need none of their own."""

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.support.local_cluster import Cluster, running
from tests.support.mesh_cluster import mesh_running

_numbers = itertools.count()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running(f"e2e-{os.getpid()}") as found:
        yield found


@pytest.fixture(scope="session")
def mesh() -> Iterator[Cluster]:
    """One cluster with a mesh for all tests of test_mesh_*.py; each leaves it as it found it."""
    with mesh_running(f"mesh-{os.getpid()}") as found:
        yield found


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own."""
    words = request.node.name.split("[")[0].removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    name = f"t{next(_numbers)}-{words}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
