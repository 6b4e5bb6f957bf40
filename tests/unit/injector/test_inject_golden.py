"""What becomes of some fifty pods, in files: NAME.in.yaml and NAME.out.yaml."""

import os
from typing import Any

import kubernetes_validate
import pytest
import yaml

from injector.decision import Decision, Inject
from injector.patch import decide
from mesh_local.kinds.pod import POD
from tests.support.inject import CASES, GOLDEN, case


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def written(decision: Decision) -> str:
    if isinstance(decision, Inject):
        told: dict[str, Any] = {"decision": "Injected"}
        if decision.warnings:
            told["warnings"] = list(decision.warnings)
        told["pod"] = decision.pod
    else:
        told = {"decision": str(decision.reason), "message": decision.message}
    return yaml.dump(told, Dumper=_Dumper, sort_keys=False, width=110)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.out.yaml"
    text = written(decide(*case(name)))
    if os.environ.get("TRIOMESH_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text(), "set TRIOMESH_UPDATE_GOLDEN=1 if the change is meant"


def test_every_input_has_an_output_and_no_output_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{name}.{what}.yaml" for name in CASES for what in ("in", "out")
    }


@pytest.mark.parametrize("version", ["1.29", "1.32", "1.36"])
def test_published_schemas_take_what_comes_out(version: str) -> None:
    for name in CASES:
        decision = decide(*case(name))
        if isinstance(decision, Inject):
            made = {"apiVersion": "v1", "kind": "Pod", **decision.pod}
            kubernetes_validate.validate(made, version, strict=True)


@pytest.mark.parametrize("name", CASES)
def test_the_api_server_takes_what_comes_out(name: str) -> None:
    pod, namespace, values = case(name)
    pod.get("metadata", {}).setdefault("namespace", namespace.name)
    decision = decide(pod, namespace, values)
    if isinstance(decision, Inject):
        made: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", **decision.pod}
        POD.default(made)
        errors = POD.validate(made)
        # Names are given by the server; one kind of hook the server refuses whoever wrote it.
        assert [e for e in errors if "metadata" not in str(e) and "lifecycle" not in str(e)] == []
