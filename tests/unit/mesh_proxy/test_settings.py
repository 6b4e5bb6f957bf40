import pytest

from mesh_proxy.settings import SettingsError, from_environment

BASE = {"TRIOMESH_CONFIG_FILE": "/etc/mesh.json", "TRIOMESH_CA_SOCKET": "/run/ca.sock"}


def test_defaults():
    settings = from_environment(BASE)
    assert settings.config_file == "/etc/mesh.json"
    assert settings.ca_socket == "/run/ca.sock"
    assert settings.trust_domain == "cluster.local"
    assert settings.pod_ips == frozenset()
    assert settings.uid == 1337
    assert settings.own_ports == {15000, 15001, 15006, 15020, 15021}
    assert settings.outbound_hosts == ("127.0.0.1", "::1")


def test_everything_set():
    settings = from_environment(
        {
            **BASE,
            "TRIOMESH_TRUST_DOMAIN": "example.org",
            "TRIOMESH_POD_IPS": "10.0.0.1, FD00::0001,",
            "TRIOMESH_DRAIN_SECONDS": "0",
            "TRIOMESH_MAX_CONNECTIONS": "7",
            "TRIOMESH_HANDSHAKE_WORKERS": "3",
            "TRIOMESH_LOG_LEVEL": "debug",
        }
    )
    assert settings.pod_ips == {"10.0.0.1", "fd00::1"}
    assert settings.drain_s == 0
    assert (settings.max_connections, settings.handshake_workers) == (7, 3)
    assert settings.log_level == "debug"
    assert settings.trust_domain == "example.org"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRIOMESH_CONFIG_FILE", ""),
        ("TRIOMESH_CA_SOCKET", ""),
        ("TRIOMESH_POD_IPS", "10.0.0.1,nonsense"),
        ("TRIOMESH_POD_IPS", "10.0.0.0/24"),
        ("TRIOMESH_POD_IPS", "127.0.0.1"),
        ("TRIOMESH_POD_IPS", "::"),
        ("TRIOMESH_DRAIN_SECONDS", "-1"),
        ("TRIOMESH_DRAIN_SECONDS", "nan"),
        ("TRIOMESH_DRAIN_SECONDS", "inf"),
        ("TRIOMESH_DRAIN_SECONDS", "soon"),
        ("TRIOMESH_MAX_CONNECTIONS", "0"),
        ("TRIOMESH_HANDSHAKE_WORKERS", "65"),
        ("TRIOMESH_LOG_LEVEL", "loud"),
        ("TRIOMESH_TRUST_DOMAIN", "Not A Domain"),
        ("TRIOMESH_TRUST_DOMAIN", ""),
    ],
)
def test_errors_name_the_setting(name, value):
    with pytest.raises(SettingsError, match=name) as info:
        from_environment({**BASE, name: value})
    assert "\n" not in str(info.value)
    assert "expected" in str(info.value)


@pytest.mark.parametrize("name", list(BASE))
def test_what_must_be_set(name):
    with pytest.raises(SettingsError, match=name):
        from_environment({key: value for key, value in BASE.items() if key != name})
