"""Name rules: what is accepted, and Kubernetes' messages."""

import pytest

from mesh_local.machinery import names

LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
NAME_PART = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a" * 63])
def test_dns_label_accepts(name: str) -> None:
    assert names.dns_label(name, False) == []


@pytest.mark.parametrize("name", ["Bad_Name", "-a", "a-", "a.b", "", "a\n", "é"])
def test_dns_label_refuses_with_the_recorded_message(name: str) -> None:
    assert names.dns_label(name, False) == [LABEL]


def test_too_long_is_counted_in_bytes() -> None:
    assert names.dns_label("a" * 64, False) == ["must be no more than 63 bytes"]
    assert names.dns_subdomain("a" * 254, False) == ["must be no more than 253 bytes"]


def test_subdomain_has_dots_and_the_recorded_message() -> None:
    assert names.dns_subdomain("a.b-c.d", False) == []
    assert names.dns_subdomain("Bad_Name", False) == [SUBDOMAIN]
    assert names.dns_subdomain("a..b", False) == [SUBDOMAIN]


def test_a_prefix_may_end_with_a_dash() -> None:
    assert names.dns_label("web-", True) == []
    assert names.dns_label("web-", False) == [LABEL]
    assert names.dns1035_label("web-", True) == []
    assert names.dns_label("-", True) == [LABEL]


def test_dns1035_starts_with_a_letter() -> None:
    assert names.dns1035_label("a1", False) == []
    (message,) = names.dns1035_label("1a", False)
    assert message.startswith("a DNS-1035 label must consist of")
    assert message.endswith(
        "(e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
    )


def test_path_segment() -> None:
    assert names.path_segment_name("system:node", False) == []
    assert names.path_segment_name("..", False) == ["may not be '..'"]
    assert names.path_segment_name("a/b%", False) == ["may not contain '/'", "may not contain '%'"]


@pytest.mark.parametrize("key", ["a", "A.b_c-9", "example.com/x", "a" * 63, f"{'a' * 63}.b/x"])
def test_qualified_name_accepts(key: str) -> None:
    assert names.qualified_name(key) == []


def test_qualified_name_refuses() -> None:
    assert names.qualified_name("bad key") == [NAME_PART]
    assert names.qualified_name("") == ["name part must be non-empty", NAME_PART]
    assert names.qualified_name("/x") == ["prefix part must be non-empty"]
    assert names.qualified_name("A/x") == [f"prefix part {SUBDOMAIN}"]
    assert names.qualified_name("a" * 64) == ["name part must be no more than 63 bytes"]
    (message,) = names.qualified_name("a/b/c")
    assert message.endswith("with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")


def test_label_value() -> None:
    assert names.label_value("") == []
    assert names.label_value("My_value.1") == []
    assert names.label_value("-a") != []
    assert names.label_value("a" * 64) == ["must be no more than 63 bytes"]


def test_port_name() -> None:
    assert names.port_name("http-1") == []
    assert names.port_name("80") == ["must contain at least one letter (a-z)"]
    assert names.port_name("a--b") == ["must not contain consecutive hyphens"]
    assert names.port_name("-a") == ["must not begin or end with a hyphen"]
    assert names.port_name("A") == [
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        "must contain at least one letter (a-z)",
    ]
    assert names.port_name("a" * 16) == ["must be no more than 15 bytes"]


def test_port_number() -> None:
    assert names.port_number(1) == names.port_number(65535) == []
    assert names.port_number(0) == ["must be between 1 and 65535, inclusive"]


def test_env_var_name_is_any_printable_ascii_but_equals() -> None:
    assert names.env_var_name("a b-1.x") == []
    assert names.env_var_name("") == ["environment variable name must be non-empty"]
    for bad in ("a=b", "é", "a\t"):
        assert names.env_var_name(bad) != []


def test_config_key_is_a_file_name() -> None:
    assert names.config_key("a.b_C-1") == []
    assert names.config_key("..") == ["must not be '..'"]
    assert names.config_key("..a") == ["must not start with '..'"]
    assert names.config_key("a/b") != []


def test_other_rules() -> None:
    assert names.header_name("X-A") == []
    assert names.header_name("X A") != []
    assert names.percent("50%") == []
    assert names.percent("50") != []
    assert names.ip_address("2001:db8::1") == []
    assert names.ip_address("1.2.3") == ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
