"""What a replica is told by its environment, and what it refuses."""

import pytest

from mesh_control.settings import ROLES, SettingsError, from_environment

BASE = {
    "TRIOMESH_POD_NAME": "control-0",
    "TRIOMESH_POD_NAMESPACE": "mesh",
    "TRIOMESH_INJECTOR_VALUES": '{"version": "1", "image": "i"}',
}


def test_a_replica_does_everything_unless_told() -> None:
    settings = from_environment(BASE)
    assert settings.roles == ROLES
    assert settings.lease == "triomesh-control"
    assert settings.check_peer_address
    assert settings.cluster_networks == ()
    assert "triomesh-injector.mesh.svc" in settings.webhook_names


def test_roles_in_any_order() -> None:
    settings = from_environment({**BASE, "TRIOMESH_ROLES": " injector, ca,ca"})
    assert settings.roles == ("ca", "injector")
    assert settings.lease == "triomesh-control-ca-injector"


def test_networks_and_the_peers_address() -> None:
    env = {"TRIOMESH_CLUSTER_NETWORKS": "10.0.0.0/8, fd00::/8", "TRIOMESH_CA_CHECK_PEER_ADDRESS": "false"}
    settings = from_environment({**BASE, **env})
    assert settings.cluster_networks == ("10.0.0.0/8", "fd00::/8")
    assert not settings.check_peer_address


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TRIOMESH_ROLES", "ca,king", "TRIOMESH_ROLES: expected some of ca, discovery, injector, got 'king'"),
        ("TRIOMESH_CLUSTER_NETWORKS", "10.0.0.1/8", "TRIOMESH_CLUSTER_NETWORKS: expected networks such as"),
        ("TRIOMESH_CA_CHECK_PEER_ADDRESS", "no", "TRIOMESH_CA_CHECK_PEER_ADDRESS: expected true or false"),
        ("TRIOMESH_LOG_LEVEL", "loud", "TRIOMESH_LOG_LEVEL: expected one of debug"),
        ("TRIOMESH_POD_NAME", "", "TRIOMESH_POD_NAME: expected from the pod's fields"),
        ("TRIOMESH_INJECTOR_VALUES", "[]", "TRIOMESH_INJECTOR_VALUES: expected an object"),
        ("TRIOMESH_TRUST_DOMAIN", "No!", "TRIOMESH_TRUST_DOMAIN: "),
    ],
)
def test_what_is_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({**BASE, name: value})
    assert str(caught.value).startswith(message)
