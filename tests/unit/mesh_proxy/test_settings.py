import pytest

from mesh_api.limits import Limits
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
            "TRIOMESH_LIMIT_CONNECTIONS": "7",
            "TRIOMESH_LIMIT_DETECT_SECONDS": "0.5",
            "TRIOMESH_HANDSHAKE_WORKERS": "3",
            "TRIOMESH_LOG_LEVEL": "debug",
        }
    )
    assert settings.pod_ips == {"10.0.0.1", "fd00::1"}
    assert settings.drain_s == 0
    assert settings.limits == Limits(connections=7, detect_seconds=0.5)
    assert settings.handshake_workers == 3
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
        ("TRIOMESH_LIMIT_CONNECTIONS", "0"),
        ("TRIOMESH_LIMIT_CONNECTIONS", "1.5"),
        ("TRIOMESH_LIMIT_HEAD_BYTES", "64Ki"),
        ("TRIOMESH_LIMIT_DETECT_SECONDS", "-1"),
        ("TRIOMESH_LIMIT_NONSENSE", "1"),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {b"websocket"}),
        ("", set()),
        ("WebSocket", {b"websocket"}),
        (" websocket , IRC/6.9 ", {b"websocket", b"irc/6.9"}),
    ],
)
def test_upgrades(text, expected):
    env = BASE if text is None else {**BASE, "TRIOMESH_UPGRADES": text}
    assert from_environment(env).upgrades == expected


@pytest.mark.parametrize("text", ["h2c", "websocket,H2C", "web socket", "a/b/c", "a;b", "x" * 65, "\u00e9"])
def test_upgrades_that_are_refused(text):
    with pytest.raises(SettingsError, match="TRIOMESH_UPGRADES: expected"):
        from_environment({**BASE, "TRIOMESH_UPGRADES": text})


@pytest.mark.parametrize("name", list(BASE))
def test_what_must_be_set(name):
    with pytest.raises(SettingsError, match=name):
        from_environment({key: value for key, value in BASE.items() if key != name})


CONTROL = {
    "TRIOMESH_CONTROL_ADDRESS": "triomesh-control.triomesh-system.svc:15010",
    "TRIOMESH_CA_ADDRESS": "[fd00::1]:15012",
    "TRIOMESH_CONTROL_IDENTITY": "spiffe://cluster.local/ns/triomesh-system/sa/triomesh-control",
    "TRIOMESH_POD_NAME": "web-0",
    "TRIOMESH_POD_NAMESPACE": "shop",
}


def test_with_a_control_plane():
    settings = from_environment({**CONTROL, "TRIOMESH_TRUST_BUNDLE": "pem"})
    assert settings.control == ("triomesh-control.triomesh-system.svc", 15010)
    assert settings.ca == ("fd00::1", 15012)
    assert str(settings.ca) == "[fd00::1]:15012"
    assert (settings.config_file, settings.ca_socket) == ("", "")
    assert (settings.pod_name, settings.pod_namespace) == ("web-0", "shop")
    assert settings.bundle_pem == "pem"
    assert settings.bundle_file == "/run/triomesh/bundle/bundle.pem"
    assert settings.token_file == "/run/secrets/triomesh/token"


def test_a_control_plane_with_a_ca_by_hand():
    env = {name: value for name, value in CONTROL.items() if name != "TRIOMESH_CA_ADDRESS"}
    settings = from_environment({**env, "TRIOMESH_CA_SOCKET": "/run/ca.sock"})
    assert settings.ca is None
    assert settings.ca_socket == "/run/ca.sock"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TRIOMESH_CONTROL_ADDRESS", "host", "HOST:PORT"),
        ("TRIOMESH_CONTROL_ADDRESS", "host:0", "HOST:PORT"),
        ("TRIOMESH_CONTROL_ADDRESS", ":15010", "HOST:PORT"),
        ("TRIOMESH_CONTROL_ADDRESS", "fd00::1:15010", "HOST:PORT"),
        ("TRIOMESH_CONTROL_ADDRESS", "[host]:15010", "HOST:PORT"),
        ("TRIOMESH_CA_ADDRESS", "http://host:15012", "HOST:PORT"),
        ("TRIOMESH_CONTROL_IDENTITY", "", "SPIFFE id"),
        ("TRIOMESH_CONTROL_IDENTITY", "spiffe://x", "spiffe://<trust domain>/ns/"),
        ("TRIOMESH_CONTROL_IDENTITY", "spiffe://other.example/ns/a/sa/b", "cluster.local"),
        ("TRIOMESH_POD_NAME", "", "the pod's name"),
        ("TRIOMESH_POD_NAMESPACE", "", "the pod's namespace"),
    ],
)
def test_errors_with_a_control_plane(name, value, expected):
    with pytest.raises(SettingsError) as caught:
        from_environment({**CONTROL, name: value})
    assert str(caught.value).startswith(f"{name}: expected")
    assert expected in str(caught.value)


def test_one_source_of_configuration_and_one_of_certificates():
    with pytest.raises(SettingsError, match="TRIOMESH_CONFIG_FILE: expected it or TRIOMESH_CONTROL_ADDRESS"):
        from_environment({**CONTROL, "TRIOMESH_CONFIG_FILE": "/x"})
    with pytest.raises(SettingsError, match="TRIOMESH_CA_SOCKET: expected it or TRIOMESH_CA_ADDRESS"):
        from_environment({**CONTROL, "TRIOMESH_CA_SOCKET": "/x"})
    with pytest.raises(
        SettingsError, match="TRIOMESH_CONFIG_FILE: expected a path, or TRIOMESH_CONTROL_ADDRESS"
    ):
        from_environment({})
