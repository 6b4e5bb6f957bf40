"""`meshctl inject` and `uninject`: every kind with pods, documents that stay, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from meshctl.main import cli
from meshctl.manifests_io import ManifestError, changed

POD_SPEC = {"containers": [{"name": "web", "image": "x"}]}
TEMPLATE = {"metadata": {"labels": {"app": "web"}}, "spec": POD_SPEC}


def inject(text: str, *options: str, command: str = "inject") -> Result:
    return CliRunner().invoke(cli, [command, *options], input=text)


def workload(kind: str, version: str, spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": spec,
    }


KINDS = [
    (workload("Pod", "v1", POD_SPEC), ()),
    *(
        (workload(kind, version, {"template": TEMPLATE}), ("spec", "template"))
        for kind, version in (
            ("ReplicationController", "v1"),
            ("Deployment", "apps/v1"),
            ("ReplicaSet", "apps/v1"),
            ("StatefulSet", "apps/v1"),
            ("DaemonSet", "apps/v1"),
            ("Job", "batch/v1"),
        )
    ),
    (
        workload("CronJob", "batch/v1", {"jobTemplate": {"spec": {"template": TEMPLATE}}}),
        ("spec", "jobTemplate", "spec", "template"),
    ),
]


@pytest.mark.parametrize(("obj", "path"), KINDS, ids=[obj["kind"] for obj, _ in KINDS])
def test_every_kind_with_pods(obj: dict[str, Any], path: tuple[str, ...]) -> None:
    result = inject(json.dumps(obj), "--set", "image.tag=v9")
    assert (result.exit_code, result.stderr) == (0, f"{obj['kind'].lower()}/web: injected\n")
    pod: Any = yaml.safe_load(result.stdout)
    for key in path:
        pod = pod[key]
    names = [container["name"] for container in pod["spec"]["initContainers"]]
    assert names == ["triomesh-init", "triomesh-proxy"]
    assert pod["spec"]["initContainers"][0]["image"] == "triomesh:v9"
    again = inject(result.stdout, "--set", "image.tag=v9")
    assert again.stdout == result.stdout
    assert "injected already" in again.stderr
    back = inject(result.stdout, command="uninject")
    assert (back.exit_code, back.stderr) == (0, f"{obj['kind'].lower()}/web: sidecar taken out\n")
    assert yaml.safe_load(back.stdout) == obj


def test_items_of_a_list() -> None:
    items = [obj for obj, _ in KINDS[:2]] + [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
    ]
    result = inject(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    assert result.exit_code == 0
    made = yaml.safe_load(result.stdout)["items"]
    assert [item["kind"] for item in made] == ["Pod", "ReplicationController", "Service"]
    assert "initContainers" in made[0]["spec"]
    assert made[2] == items[2]


MIXED = """\
# first
apiVersion: v1
kind: ConfigMap   # kept
metadata: {name: a}
data: {b: yes, c: "1e3"}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {git: "1234e5", o: "on", why: "y", day: 2020-01-01, v: "1.10"}}
spec:
  containers: [{name: web, image: x, args: ["0x10", "007", ".5", "1_0", "null", "a: b", "x\\ny"]}]
---
# a kind of somebody else's with the same name
apiVersion: example.com/v1
kind: Deployment
spec: whatever
---
---
just text
"""


def test_documents_without_pods_stay_byte_for_byte_and_in_order() -> None:
    result = inject(MIXED)
    assert result.exit_code == 0
    before, _, rest = MIXED.partition("---\napiVersion: v1\nkind: Pod")
    assert result.stdout.startswith(before + "---\napiVersion: v1\nkind: Pod\n")
    assert result.stdout.endswith(rest[rest.index("---\n# a kind") :])
    pod = list(yaml.load_all(result.stdout, Loader=yaml.BaseLoader))[1]
    assert pod["metadata"]["labels"]["git"] == "1234e5"
    # Texts stay texts also for readers with other rules: everything doubtful is in quotes.
    for quoted in (
        '"1234e5"',
        "'on'",
        '"y"',
        '"2020-01-01"',
        '"1.10"',
        '"0x10"',
        '"007"',
        '".5"',
        '"1_0"',
        "'null'",
    ):
        assert quoted in result.stdout
    back = inject(result.stdout, command="uninject")
    assert list(yaml.safe_load_all(back.stdout))[2:] == list(yaml.safe_load_all(MIXED))[2:]


def test_nothing_to_do_is_no_error() -> None:
    text = "# only this\nkind: Service\n"
    for command in ("inject", "uninject"):
        result = inject(text, command=command)
        assert (result.exit_code, result.stdout, result.stderr) == (0, text, "")


def test_a_skip_and_warnings_are_told() -> None:
    host = {
        **workload("DaemonSet", "apps/v1", {}),
        "spec": {"template": {"spec": {**POD_SPEC, "hostNetwork": True}}},
    }
    shared = workload("Pod", "v1", {**POD_SPEC, "shareProcessNamespace": True})
    system = {**shared, "metadata": {"name": "dns", "namespace": "kube-system"}}
    text = "\n---\n".join(json.dumps(obj) for obj in (host, shared, system))
    result = inject(text)
    assert result.exit_code == 0
    told = result.stderr.splitlines()
    assert told[0].startswith("daemonset/web: skipped: HostNetwork: hostNetwork")
    assert told[1] == "pod/web: injected"
    assert told[2].startswith("pod/web: warning: shareProcessNamespace")
    assert told[3] == "pod/dns: skipped: ExcludedNamespace: namespace kube-system is never injected"
    assert result.stdout.startswith(json.dumps(host))


def test_the_trust_bundle_and_values_come_from_files(tmp_path: Path) -> None:
    bundle, values = tmp_path / "roots.pem", tmp_path / "values.yaml"
    bundle.write_text("-----BEGIN CERTIFICATE-----\n")
    values.write_text("trustDomain: shop.example\nsidecar: {logLevel: debug}\n")
    text = json.dumps(workload("Pod", "v1", POD_SPEC))
    result = inject(text, "--trust-bundle", str(bundle), "--values", str(values), "-n", "x")
    environment = yaml.safe_load(result.stdout)["spec"]["initContainers"][1]["env"]
    told = {variable["name"]: variable.get("value") for variable in environment}
    assert told["TRIOMESH_TRUST_BUNDLE"] == "-----BEGIN CERTIFICATE-----\n"
    assert told["TRIOMESH_TRUST_DOMAIN"] == "shop.example"
    assert told["TRIOMESH_LOG_LEVEL"] == "debug"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "<stdin>: not YAML: while parsing a flow node"),
        ("a: 1\na: 2", "<stdin>: line 2: key 'a' occurs twice in one mapping"),
        ("? [x]\n: 1", "occurs twice"),
        (
            "a: &a [*a]\nkind: Pod\napiVersion: v1\nmetadata: *a",
            "found unconstructable recursive node",
        ),
        ("kind: Pod\napiVersion: v1", "document 1: Pod: metadata: expected a mapping"),
        (
            json.dumps(workload("Deployment", "apps/v1", {})),
            "deployment/web: spec.template: expected a mapping",
        ),
        (
            json.dumps(workload("Pod", "v1", {})),
            "pod/web: InvalidPod: Object missing required field `containers`",
        ),
        ('{"apiVersion": "v1", "kind": "List", "items": {}}', "document 1: List: items: expected a list"),
        ("&a {apiVersion: v1, kind: List, items: [*a]}", "found unconstructable recursive node"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
        ("[" * 800 + "]" * 800, "nested too deeply"),
    ],
)
def test_bad_input_ends_with_one_line_and_no_output(text: str, message: str) -> None:
    good = json.dumps(workload("Pod", "v1", POD_SPEC))
    result = inject(text + "\n---\n" + good)
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_an_annotation_that_cannot_be_used_names_object_and_annotation() -> None:
    pod = workload("Pod", "v1", POD_SPEC)
    pod["metadata"]["annotations"] = {"triomesh.dev/exclude-outbound-ports": "x"}
    result = inject(json.dumps(pod))
    assert result.exit_code == 2
    assert (
        "pod/web: InvalidAnnotation: annotation triomesh.dev/exclude-outbound-ports: expected"
        in result.stderr
    )


def test_wrong_values_are_told() -> None:
    result = inject("{}", "--set", "imagge.tag=x")
    assert result.exit_code == 2
    assert "imagge" in result.stderr


def test_input_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff\xfe")
    result = inject("", "-f", str(path))
    assert result.exit_code == 2
    assert "not text" in result.stderr


def test_the_length_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshctl.manifests_io.MAX_CHARS", 10)
    with pytest.raises(ManifestError, match="expected at most 10 characters"):
        changed("a: " + "b" * 10, lambda document, number: document)
