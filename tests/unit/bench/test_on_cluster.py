"""What the bench on the local cluster makes of a sidecar's dump."""

from typing import Any

from bench.on_cluster import addresses, first_weight, policy
from mesh_api.policy import read_policy
from mesh_api.policy_types import TrafficPolicy

EMPTY: dict[str, Any] = {"snapshot": None}
DUMP: dict[str, Any] = {
    "snapshot": {
        "destinations": [
            {"namespace": "bench", "name": "other", "port": 80, "endpoints": [{"address": "10.0.0.9"}]},
            {
                "namespace": "bench",
                "name": "web",
                "port": 80,
                "endpoints": [{"address": "10.0.0.2"}, {"address": "10.0.0.1"}],
                "routes": [{"to": [{"subset": "v1"}]}, {"to": [{"weight": 7}, {"weight": 100}]}],
            },
        ]
    }
}


def test_a_sidecar_that_does_not_have_the_service_has_none_of_it() -> None:
    assert addresses(EMPTY) == []
    assert first_weight(EMPTY) is None


def test_the_endpoints_and_the_split_of_the_service_are_found() -> None:
    assert addresses(DUMP) == ["10.0.0.1", "10.0.0.2"]
    assert first_weight(DUMP) == 7


def test_the_policies_are_valid() -> None:
    metadata = {"name": "web", "namespace": "bench"}
    assert isinstance(read_policy("TrafficPolicy", {**policy(7), "metadata": metadata}), TrafficPolicy)
