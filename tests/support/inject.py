"""Pods for tests of the injector: the golden inputs, and the values they are injected with."""

from pathlib import Path
from typing import Any

import yaml

from injector.decision import INJECTION, Namespace
from injector.values import Values, from_mapping

GOLDEN = Path(__file__).parents[1] / "golden" / "inject"
CASES = sorted(path.name.removesuffix(".in.yaml") for path in GOLDEN.glob("*.in.yaml"))
BUNDLE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
VALUES = {"version": "1.2.3", "image": "registry.example/triomesh:1.2.3", "trustBundle": BUNDLE}
ENABLED = Namespace("shop", {INJECTION: "enabled"})


def values(**more: Any) -> Values:
    return from_mapping({**VALUES, **more})


def case(name: str) -> tuple[dict[str, Any], Namespace, Values]:
    """Pod, namespace and values of a golden input."""
    given = yaml.safe_load((GOLDEN / f"{name}.in.yaml").read_text())
    where = given.get("namespace", {"name": ENABLED.name, "labels": ENABLED.labels})
    namespace = Namespace(where["name"], where.get("labels", {}))
    return given["pod"], namespace, values(**given.get("values", {}))
