"""What Deployments, ReplicaSets and Jobs share: a pod template and a selector for its Pods."""

from typing import Any

from mesh_local.kinds.checks import ordered
from mesh_local.kinds.pod_validation import pod_warnings
from mesh_local.machinery.errors import FieldError, invalid_value
from mesh_local.machinery.objects import Object, dig
from mesh_local.machinery.selectors import LabelSelector

TEMPLATE = "spec.template"


def selects_template(spec: Object) -> list[FieldError]:
    """The selector must match the labels of the template; it has been validated."""
    labels = dig(spec, "template", "metadata", "labels", default={})
    selector = LabelSelector.from_object(spec.get("selector"))
    if selector.empty or selector.matches(labels):
        return []
    detail = "`selector` does not match template `labels`"
    return [invalid_value(f"{TEMPLATE}.metadata.labels", ordered(labels) or None, detail)]


def template_warnings(obj: Object) -> list[str]:
    return pod_warnings(dig(obj, "spec", "template", "spec", default={}), f"{TEMPLATE}.spec")


def template_cells(obj: Object) -> list[Any]:
    """Names and images of the template's containers."""
    containers = dig(obj, "spec", "template", "spec", "containers", default=[])
    return [
        ",".join(c.get("name") or "" for c in containers),
        ",".join(c.get("image") or "" for c in containers),
    ]


def selector_text(obj: Object) -> str:
    return str(LabelSelector.from_object(dig(obj, "spec", "selector")))
