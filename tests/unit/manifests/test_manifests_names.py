"""Names that several packages write down for themselves are the same names."""

from injector.decision import INJECTION
from injector.values import Values as InjectorValues
from manifests import names
from mesh_control.serve import ca_store


def test_names_agree() -> None:
    assert names.INJECTION_LABEL == INJECTION
    assert names.CA_SECRET == ca_store.SECRET
    defaults = InjectorValues(version="1", image="i")
    assert defaults.bundle_config_map == names.CA_BUNDLE
    assert defaults.token_audience == names.CA_AUDIENCE
    assert (*names.UNINJECTED_NAMESPACES, names.SYSTEM_NAMESPACE) == defaults.excluded_namespaces
    assert defaults.control_address == f"{names.CONTROL}.{names.SYSTEM_NAMESPACE}.svc:{names.DISCOVERY_PORT}"
