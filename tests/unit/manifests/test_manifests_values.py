"""Values of an installation: where they are read from, and what is refused."""

import msgspec
import pytest

from injector.values import from_mapping
from manifests.injection import as_environment, injector_values
from manifests.values import Values, ValuesError, override, parse, to_plain
from mesh_api.limits import Limits


def test_defaults_are_empty_and_come_back() -> None:
    assert to_plain(Values()) == {}
    assert parse({}) == Values()


def test_assignments_over_a_tree() -> None:
    tree = override(
        {"image": {"repository": "registry.example/triomesh"}, "replicas": 2},
        ["image.tag=1.2", "replicas=3", "image.pullSecrets=[a, b]", "sidecar.rewriteProbes=false"],
    )
    values = parse(tree)
    assert values.image.reference == "registry.example/triomesh:1.2"
    assert values.replicas == 3
    assert values.image.pull_secrets == ("a", "b")
    assert values.sidecar.rewrite_probes is False
    assert parse(to_plain(values)) == values


def test_digits_stay_text_where_text_is_wanted() -> None:
    assert parse(override({}, ["image.tag=12", "replicas=12"])).image.tag == "12"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"replicas": 0}, "values.replicas: expected `int` >= 1"),
        ({"replicsa": 1}, "values: object contains unknown field `replicsa`"),
        ({"image": {"tag": "a b"}}, "values.image.tag: expected `str` matching regex"),
        ({"webhook": {"failurePolicy": "Maybe"}}, "values.webhook.failurePolicy: invalid enum value 'Maybe'"),
        ({"namespace": "Upper"}, "values.namespace: expected `str` matching regex"),
        ({"clusterNetworks": ["10.0.0.0/99"]}, "values.clusterNetworks: expected networks"),
        ({"clusterNetworks": ["10.0.0.1/8"]}, "values.clusterNetworks: expected networks"),
        ({"topology": "split"}, "values.topology: invalid enum value 'split'"),
        ({"sidecar": {"capture": {"excludeInboundPorts": "x"}}}, "values.sidecar.capture: "),
        ({"sidecar": {"limits": {"streams": 0}}}, "values.sidecar.limits.streams: expected `int` >= 1"),
        ({"sidecar": {"limits": {"stream": 5}}}, "values.sidecar.limits: object contains unknown field"),
    ],
)
def test_refused_values_name_their_path(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ValuesError) as caught:
        parse(tree)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("assignment", ["replicas", "=1", "a..b=1", "a b=1"])
def test_refused_assignments(assignment: str) -> None:
    with pytest.raises(ValuesError, match=r"expected path\.to\.field=value"):
        override({}, [assignment])


def test_assignment_through_a_value() -> None:
    with pytest.raises(ValuesError, match="replicas has a value, expected a mapping"):
        override({"replicas": 1}, ["replicas.of=2"])


def test_the_injector_learns_the_installation() -> None:
    values = parse({"namespace": "mesh", "trustDomain": "example.org", "image": {"tag": "9"}})
    found = injector_values(values)
    assert found.control_identity == "spiffe://example.org/ns/mesh/sa/triomesh-control"
    assert found.control_address == "triomesh-control.mesh.svc:15010"
    assert found.image == "triomesh:9"
    assert "mesh" in found.excluded_namespaces


def test_limits_reach_the_injector() -> None:
    values = parse(override({}, ["sidecar.limits.headBytes=131072", "sidecar.limits.detectSeconds=0.5"]))
    assert injector_values(values).limits == Limits(head_bytes=131072, detect_seconds=0.5)
    assert parse(to_plain(values)) == values
    assert from_mapping(msgspec.json.decode(as_environment(values))) == injector_values(values)
