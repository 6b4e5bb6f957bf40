"""Names and ports that the installed objects, the control plane and the command line share."""

GROUP = "triomesh.dev"
API_VERSION = f"{GROUP}/v1alpha1"
SYSTEM_NAMESPACE = "triomesh-system"
CONTROL = "triomesh-control"
"""ServiceAccount, Deployment, Service and roles of the control plane."""
CA = "triomesh-ca"
"""Service of the CA; its Deployment where the roles are separate."""
INJECTOR = "triomesh-injector"
"""Its webhook configuration, and Service and Deployment likewise."""
VALIDATOR = "triomesh-validator"
CA_SECRET = "triomesh-ca"
CA_BUNDLE = "triomesh-ca-bundle"
LEASE = "triomesh-control"
CA_AUDIENCE = "triomesh-ca"

INJECTION_LABEL = f"{GROUP}/injection"
INJECT_LABEL = f"{GROUP}/inject"
INSTALL_LABEL = f"{GROUP}/install"
"""Every installed object carries it; what carries it and is no longer rendered is removed by an upgrade."""
INSTALL_LABEL_VALUE = "triomesh"
VALUES_ANNOTATION = f"{GROUP}/values"

DISCOVERY_PORT = 15010
CA_PORT = 15012
ADMIN_PORT = 15013
HTTP_PORT = 15014
WEBHOOK_PORT = 15017

UNINJECTED_NAMESPACES = ("kube-system", "kube-node-lease")
"""Besides our own: pods that a cluster needs to start must never wait for a webhook."""


def labels(component: str = "") -> dict[str, str]:
    """Labels of an installed object."""
    found = {
        "app.kubernetes.io/name": CONTROL,
        "app.kubernetes.io/part-of": "triomesh",
        INSTALL_LABEL: INSTALL_LABEL_VALUE,
    }
    if component:
        found["app.kubernetes.io/component"] = component
    return found
