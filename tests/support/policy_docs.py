"""The examples of docs/policy.md as whole objects."""

import re
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "policy.md"


def examples() -> list[Object]:
    """Each fenced example; one that is only a part of a spec gets the rest of a TrafficPolicy around it."""
    found: list[Object] = []
    for i, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)):
        said = yaml.safe_load(block)
        if "kind" not in said:
            subsets = {name: {"labels": {"version": name}} for name in ("v1", "v2")}
            said = {
                "apiVersion": "triomesh.dev/v1alpha1",
                "kind": "TrafficPolicy",
                "metadata": {"namespace": "bookshop"},
                "spec": {"target": {"service": "reviews"}, "subsets": subsets, **said},
            }
        said["metadata"]["name"] = f"example-{i}"
        found.append(said)
    return found
