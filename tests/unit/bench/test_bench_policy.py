"""The policies of the bench: valid for ours, and complete for Envoy."""

from bench.policy import envoy_clusters, envoy_routes, with_policy
from mesh_api.sidecar import Destination, Endpoint, Snapshot, Workload, validate

DESTINATION = Destination(
    name="web", namespace="bench", port=80, addresses=("10.0.0.1",), endpoints=(Endpoint("127.0.0.1", 1),)
)


def test_a_sidecar_accepts_them_and_finds_an_endpoint_in_each_subset() -> None:
    made = with_policy(DESTINATION)
    snapshot = Snapshot(workload=Workload(name="client", namespace="bench"), destinations=(made,))
    assert not list(validate(snapshot))
    for subset in made.subsets.values():
        (endpoint,) = [one for one in made.endpoints if subset.labels.items() <= one.labels.items()]
        assert (endpoint.address, endpoint.port) == ("127.0.0.1", 1)


def test_envoys_routes_lead_to_its_clusters() -> None:
    clusters = envoy_clusters({"name": "next", "type": "STATIC", "load_assignment": {"endpoints": ["one"]}})
    routes = [route["route"] for route in envoy_routes()]
    arms = [arm["name"] for route in routes for arm in route.get("weighted_clusters", {}).get("clusters", [])]
    used = {*arms, *(route["cluster"] for route in routes if "cluster" in route)}
    assert used == {cluster["name"] for cluster in clusters}
    assert all(cluster["load_assignment"]["endpoints"] == ["one"] for cluster in clusters)
