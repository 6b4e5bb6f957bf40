"""`python -m manifests`: write the default installation to manifests/base, for `kubectl apply -k`."""

from pathlib import Path
from typing import Any

import yaml

from manifests.render import render, to_yaml
from manifests.values import Values

_NOTE = "# Written by `python -m manifests` from the functions of this package; do not edit.\n"


def file_name(obj: dict[str, Any]) -> str:
    return f"{obj['kind'].lower()}-{obj['metadata']['name'].split('.')[0]}.yaml"


def files(values: Values) -> dict[str, str]:
    """The files of manifests/base by name."""
    objects = render(values)
    found = {file_name(obj): _NOTE + to_yaml([obj]) for obj in objects}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [file_name(obj) for obj in objects],
    }
    found["kustomization.yaml"] = _NOTE + yaml.safe_dump(kustomization, sort_keys=False)
    return found


def main() -> None:
    base = Path(__file__).parent / "base"
    base.mkdir(exist_ok=True)
    wanted = files(Values())
    for old in base.glob("*.yaml"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (base / name).write_text(text)


if __name__ == "__main__":
    main()
