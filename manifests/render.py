"""All objects of an installation, in the order in which they are created."""

from typing import Any

import yaml

from manifests import control, webhooks
from manifests.crds.access_policy import access_policy
from manifests.crds.mesh_policy import mesh_policy
from manifests.crds.traffic_policy import traffic_policy
from manifests.names import labels
from manifests.rbac import rbac
from manifests.values import Values

Object = dict[str, Any]


def crds() -> list[Object]:
    marked = labels("crd")
    return [access_policy(marked), mesh_policy(marked), traffic_policy(marked)]


def render(values: Values) -> list[Object]:
    """CRDs and the namespace first, webhooks last: nothing asks a control plane that is not there yet."""
    return [
        *crds(),
        control.namespace(values),
        *rbac(values),
        *control.services(values),
        *control.deployments(values),
        *control.disruption_budgets(values),
        *control.network_policies(values),
        webhooks.injector(values),
        webhooks.validator(values),
    ]


class _Dumper(yaml.SafeDumper):
    """Indents lists as kubectl does, and never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def to_yaml(objects: list[Object]) -> str:
    """One YAML document an object, fields in the order of the objects."""
    return "---\n".join(
        yaml.dump(each, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=110)
        for each in objects
    )
