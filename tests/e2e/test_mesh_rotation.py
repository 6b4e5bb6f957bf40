"""The root is replaced under load: every step of `meshctl ca rotate` on a cluster; no request fails."""

import json
from collections.abc import Sequence

import pytest

from tests.cluster import objects
from tests.cluster.agent import Agent, name_of
from tests.support.local_cluster import Cluster
from tests.support.mesh_cluster import IMAGE, SHOP, meshctl, pods, rolled_out

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

URL = "http://web/"


def of_the_ca(mesh: Cluster) -> set[str]:
    found = json.loads(meshctl(mesh, "ca", "show", "-o", "json").stdout)["certificates"]
    return {one["sha256"] for one in found if one["role"] == "root"}


def trusted_by(mesh: Cluster, app: str) -> set[frozenset[str]]:
    """The roots of an application's sidecars, by what they say themselves."""
    found = set()
    for pod in pods(mesh, SHOP, app):
        shown = json.loads(
            meshctl(mesh, "proxy-config", f"{SHOP}/{name_of(pod)}", "certs", "-o", "json").stdout
        )
        found.add(frozenset(one["sha256"] for one in shown["certificates"] if one["role"] == "root"))
    return found


def until_all_trust(mesh: Cluster, apps: Sequence[str], roots: set[str]) -> None:
    def trust() -> bool:
        return all(trusted_by(mesh, app) == {frozenset(roots)} for app in apps)

    mesh.until(trust, f"all of {apps} trust {roots}")


def test_the_root_is_rotated(mesh: Cluster) -> None:
    old = of_the_ca(mesh)
    client = Agent(mesh, SHOP, "client")
    with client.load(URL) as load:
        meshctl(mesh, "ca", "rotate")
        both = of_the_ca(mesh)
        assert len(both) == len(old) + 1
        until_all_trust(mesh, ("client", "web"), both)
        load.goes_on()
        meshctl(mesh, "ca", "rotate", "--activate", "--force")
        # Certificates of the new root on one side: pods made anew, rather than to wait for half a lifetime.
        mesh.kubectl("-n", SHOP, "rollout", "restart", "deploy/web")
        rolled_out(mesh, SHOP, "web")
        load.goes_on()
    mesh.apply(objects.deployment(SHOP, "renewed", IMAGE))
    rolled_out(mesh, SHOP, "renewed")
    mesh.kubectl("-n", SHOP, "rollout", "restart", "deploy/client")
    with Agent(mesh, SHOP, "renewed").load(URL) as load:
        rolled_out(mesh, SHOP, "client")
        meshctl(mesh, "ca", "rotate", "--retire", "--force")
        new = of_the_ca(mesh)
        assert len(new) == 1
        assert not new & old
        until_all_trust(mesh, ("client", "web", "renewed"), new)
        load.goes_on()
    mesh.until(lambda: len(pods(mesh, SHOP, "client")) == 1, "the former client gone")
    assert Agent(mesh, SHOP, "client").call(URL)["status"] == 200
    mesh.kubectl("-n", SHOP, "delete", "deployment", "renewed")
