"""Which Deployments the control plane has: one of all roles, or one a role; and the Services before them."""

from dataclasses import dataclass

from manifests.names import (
    ADMIN_PORT,
    CA,
    CA_PORT,
    CONTROL,
    DISCOVERY_PORT,
    HTTP_PORT,
    INJECTOR,
    WEBHOOK_PORT,
)
from manifests.values import Values

PORTS = {
    "discovery": DISCOVERY_PORT,
    "ca": CA_PORT,
    "webhook": WEBHOOK_PORT,
    "http": HTTP_PORT,
    "admin": ADMIN_PORT,
}
SERVICES = {
    CONTROL: ("discovery", "http", "admin"),
    CA: ("ca", "http"),
    INJECTOR: ("webhook", "http"),
}
"""A Service a role, in either topology: what pods have been told stays right when the topology changes."""


@dataclass(frozen=True)
class Part:
    """A Deployment: its name, the component label of its pods, what they do, and where they listen."""

    name: str
    component: str
    roles: tuple[str, ...]
    ports: tuple[str, ...]

    @property
    def selector(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": CONTROL, "app.kubernetes.io/component": self.component}


_COMBINED = (Part(CONTROL, "control", ("ca", "discovery", "injector"), tuple(PORTS)),)
_SEPARATE = (
    Part(CONTROL, "control", ("discovery",), SERVICES[CONTROL]),
    Part(CA, "ca", ("ca",), SERVICES[CA]),
    Part(INJECTOR, "injector", ("injector",), SERVICES[INJECTOR]),
)


def parts(values: Values) -> tuple[Part, ...]:
    """The Deployments of an installation; the one named CONTROL is first, and always there."""
    return _SEPARATE if values.topology == "separate" else _COMBINED


def part_behind(values: Values, service: str) -> Part:
    """Whose pods a Service leads to."""
    found = parts(values)
    return next((part for part in found if part.name == service), found[0])
