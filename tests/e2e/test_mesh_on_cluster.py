"""A labelled namespace with unmodified programs on the local cluster; what is on the wire."""

import re

import pytest

from tests.cluster import objects
from tests.cluster.agent import Agent, metrics, name_of
from tests.support.local_cluster import Cluster
from tests.support.mesh_cluster import IMAGE, OUTSIDE, SHOP, pods, wire_of

pytestmark = pytest.mark.e2e

MARKER = b"marker-4711"
APPLICATION_DATA = re.compile(rb"\x17\x03\x03")


def test_pods_of_a_labelled_namespace_talk_mtls(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    for _ in range(10):
        assert client.call("http://web/")["status"] == 200
    counted = re.compile(
        r'triomesh_requests_total\{direction="inbound",source="spiffe://cluster.local/ns/shop/sa/default",'
        r'destination="web.shop".*code="200",flag="",mtls="true"\} (\d+)'
    )
    found = [counted.search(metrics(mesh, SHOP, name_of(pod))) for pod in pods(mesh, SHOP, "web")]
    assert sum(int(one[1]) for one in found if one) >= 10


def test_a_pod_outside_the_mesh_is_served_in_permissive_mode(mesh: Cluster) -> None:
    assert Agent(mesh, OUTSIDE, "client").call("http://web.shop/")["status"] == 200
    assert any('mtls="false"' in metrics(mesh, SHOP, name_of(pod)) for pod in pods(mesh, SHOP, "web"))


def test_nothing_that_pods_of_the_mesh_say_to_each_other_is_on_the_wire(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    first, second = pods(mesh, SHOP, "web")
    url = f"http://web/{MARKER.decode()}"
    with wire_of(mesh, first) as one, wire_of(mesh, second) as two, wire_of(mesh, client.pod) as own:
        answers = [client.call(url) for _ in range(8)]
    assert {found["status"] for found in answers} == {200}
    assert all(MARKER.decode() in found["body"] for found in answers)
    # The client's link also carries what this test says to its agent; port 80 would be the Service's.
    sent = own.payloads(8080) + own.payloads(80)
    for frames in (one.frames + two.frames, sent):
        assert not [frame for frame in frames if MARKER in frame]
        assert [frame for frame in frames if APPLICATION_DATA.search(frame)]


def test_the_wire_shows_what_pods_outside_the_mesh_say(mesh: Cluster) -> None:
    client = Agent(mesh, OUTSIDE, "client")
    (web,) = pods(mesh, OUTSIDE, "web")
    with wire_of(mesh, web) as wire:
        assert client.call(f"http://web/{MARKER.decode()}")["status"] == 200
    assert [data for data in wire.payloads(8080) if MARKER in data]


def test_a_job_completes_and_its_init_container_reaches_the_network(mesh: Cluster) -> None:
    mesh.apply(objects.job(SHOP, "once", IMAGE, "http://web/from-a-job"))
    try:
        mesh.kubectl("-n", SHOP, "wait", "--for=condition=Complete", "job/once", "--timeout=60s", timeout=90)
        for container in ("early", "app"):
            log = mesh.kubectl("-n", SHOP, "logs", "job/once", "-c", container).stdout
            assert '"status": 200' in log
    finally:
        mesh.kubectl("-n", SHOP, "delete", "job", "once")
