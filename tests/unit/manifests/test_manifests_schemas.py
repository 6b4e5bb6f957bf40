"""Every rendered object against the published schemas of every version that is supported."""

import copy
from typing import Any

import kubernetes_validate
import pytest

from manifests.render import render
from manifests.values import Values

VERSIONS = [f"1.{minor}.0" for minor in range(29, 37)]


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid(version: str) -> None:
    for obj in render(Values()):
        kubernetes_validate.validate(obj, version, strict=True)


def test_a_wrong_object_would_be_noticed() -> None:
    deployment: dict[str, Any] = next(o for o in render(Values()) if o["kind"] == "Deployment")
    wrong = copy.deepcopy(deployment)
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePolicy"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)
