"""What an installation means for the injector, and how it reaches the control plane."""

import msgspec

from injector.values import Values as InjectorValues
from manifests.names import (
    CA,
    CA_AUDIENCE,
    CA_BUNDLE,
    CA_PORT,
    CONTROL,
    DISCOVERY_PORT,
    UNINJECTED_NAMESPACES,
)
from manifests.values import Values
from mesh_api.version import VERSION

ENVIRONMENT_VARIABLE = "TRIOMESH_INJECTOR_VALUES"
"""Of the control plane: `injector.values` in JSON, the trust bundle left out, which it knows itself."""


def injector_values(values: Values) -> InjectorValues:
    """The injector's values; `trust_bundle` is for its caller to add."""
    sidecar = values.sidecar
    return InjectorValues(
        version=VERSION,
        image=values.image.reference,
        image_pull_policy=values.image.pull_policy,
        trust_domain=values.trust_domain,
        bundle_config_map=CA_BUNDLE,
        control_address=f"{CONTROL}.{values.namespace}.svc:{DISCOVERY_PORT}",
        ca_address=f"{CA}.{values.namespace}.svc:{CA_PORT}",
        control_identity_path=f"ns/{values.namespace}/sa/{CONTROL}",
        token_audience=CA_AUDIENCE,
        resources=sidecar.resources,
        capture=sidecar.capture,
        probes=sidecar.probes,
        limits=sidecar.limits,
        log_level=sidecar.log_level,
        drain_seconds=sidecar.drain_seconds,
        rewrite_probes=sidecar.rewrite_probes,
        merge_metrics=sidecar.merge_metrics,
        excluded_namespaces=(*UNINJECTED_NAMESPACES, values.namespace),
    )


def as_environment(values: Values) -> str:
    """The text of ENVIRONMENT_VARIABLE; equal values give equal text."""
    return msgspec.json.encode(injector_values(values), order="sorted").decode()
