"""Names that several packages write down for themselves are the same names."""

from typing import Literal

import pytest

from injector.decision import INJECTION
from injector.values import Values as InjectorValues
from manifests import names
from manifests.injection import as_environment
from manifests.parts import parts
from manifests.rbac import control_role
from manifests.values import Values
from mesh_control import settings
from mesh_control.roles import injector
from mesh_control.serve import ca_store


def test_names_agree() -> None:
    assert names.INJECTION_LABEL == INJECTION
    assert names.CA_SECRET == ca_store.SECRET
    assert names.CONTROL == settings.NAME
    assert names.INJECTOR == settings.INJECTOR_SERVICE == injector.CONFIGURATION
    defaults = InjectorValues(version="1", image="i")
    assert defaults.bundle_config_map == names.CA_BUNDLE
    assert defaults.token_audience == names.CA_AUDIENCE
    assert (*names.UNINJECTED_NAMESPACES, names.SYSTEM_NAMESPACE) == defaults.excluded_namespaces
    assert defaults.control_address == f"{names.CONTROL}.{names.SYSTEM_NAMESPACE}.svc:{names.DISCOVERY_PORT}"


@pytest.mark.parametrize("topology", ["combined", "separate"])
def test_each_part_may_stand_for_its_lease(topology: Literal["combined", "separate"]) -> None:
    values = Values(topology=topology)
    *_, lease_rule = control_role(values)["rules"]
    for part in parts(values):
        env = {
            "TRIOMESH_POD_NAME": "a",
            "TRIOMESH_POD_NAMESPACE": "b",
            "TRIOMESH_INJECTOR_VALUES": as_environment(values),
            "TRIOMESH_ROLES": ",".join(part.roles),
        }
        assert settings.from_environment(env).lease in lease_rule["resourceNames"]
