"""`tests/cluster/run`, which is for real clusters, against a local one: every item passes, nothing stays."""

import os
from pathlib import Path

import pytest

from tests.support.local_cluster import run, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

RUN = str(Path(__file__).parents[1] / "cluster" / "run")
ITEMS = 12


def test_every_item_passes_and_nothing_stays() -> None:
    with running(f"run-{os.getpid()}") as cluster:
        before = namespaces_and_crds(cluster.kubectl("get", "namespaces,crds", "-o", "name").stdout)
        done = run(RUN, str(cluster.kubeconfig), "any/image:1", timeout=150, check=False)
        passed = [line for line in done.stdout.splitlines() if line.startswith("PASS ")]
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(passed) == ITEMS
        assert namespaces_and_crds(cluster.kubectl("get", "namespaces,crds", "-o", "name").stdout) == before
        # Where there is an installation, it is not touched.
        cluster.kubectl("create", "namespace", "triomesh-system")
        refused = run(RUN, str(cluster.kubeconfig), "any/image:1", check=False)
        assert refused.returncode == 2
        assert "triomesh-system" in refused.stderr


def namespaces_and_crds(listed: str) -> set[str]:
    return set(listed.split())


@pytest.mark.parametrize("arguments", [(), ("/nowhere", "image"), (__file__, "image@sha256:0")])
def test_wrong_arguments(arguments: tuple[str, ...]) -> None:
    done = run(RUN, *arguments, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
