"""One local cluster for all end-to-end tests that need no cluster of their own."""

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.support.local_cluster import Cluster, running

_numbers = itertools.count()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running(f"e2e-{os.getpid()}") as found:
        yield found


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own."""
    words = request.node.name.split("[")[0].removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    name = f"t{next(_numbers)}-{words}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
