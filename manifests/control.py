"""The control plane's namespace, Deployment, Service, and what protects them."""

import json
from typing import Any

from manifests.injection import ENVIRONMENT_VARIABLE, as_environment
from manifests.names import (
    ADMIN_PORT,
    CA_AUDIENCE,
    CA_BUNDLE,
    CA_PORT,
    CONTROL,
    DISCOVERY_PORT,
    HTTP_PORT,
    VALUES_ANNOTATION,
    WEBHOOK_PORT,
    labels,
)
from manifests.values import Values, to_plain

Object = dict[str, Any]
UID = 1337
_SELECTOR = {"app.kubernetes.io/name": CONTROL, "app.kubernetes.io/component": "control"}
_POD_LABELS = {**_SELECTOR, "app.kubernetes.io/part-of": "triomesh"}
_PORTS = {
    "discovery": DISCOVERY_PORT,
    "ca": CA_PORT,
    "webhook": WEBHOOK_PORT,
    "http": HTTP_PORT,
    "admin": ADMIN_PORT,
}


def namespace(values: Values) -> Object:
    """Pod Security `restricted`: whoever may create pods here is as mighty as the control plane."""
    level = {
        f"pod-security.kubernetes.io/{mode}{suffix}": value
        for mode in ("enforce", "audit", "warn")
        for suffix, value in (("", "restricted"), ("-version", "latest"))
    }
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": values.namespace, "labels": {**labels(), **level}},
    }


def service(values: Values) -> Object:
    ports = [
        {
            "name": name,
            "port": 443 if name == "webhook" else number,
            "protocol": "TCP",
            "targetPort": name,
        }
        for name, number in _PORTS.items()
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": CONTROL, "namespace": values.namespace, "labels": labels("control")},
        "spec": {"type": "ClusterIP", "selector": _SELECTOR, "ports": ports},
    }


def deployment(values: Values) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": CONTROL,
            "namespace": values.namespace,
            "labels": labels("control"),
            # What an upgrade starts from: the choices of this installation.
            "annotations": {VALUES_ANNOTATION: json.dumps(to_plain(values), sort_keys=True)},
        },
        "spec": {
            "replicas": values.replicas,
            "revisionHistoryLimit": 5,
            "selector": {"matchLabels": _SELECTOR},
            # The old replica stays until the new one has synced: sidecars always find one.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": _POD_LABELS}, "spec": _pod(values)},
        },
    }


def _pod(values: Values) -> Object:
    spec: Object = {
        "serviceAccountName": CONTROL,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": _apart(),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _SELECTOR},
            }
        ],
        "containers": [_container(values)],
        "volumes": _volumes(),
    }
    if values.image.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in values.image.pull_secrets]
    return spec


def _apart() -> Object:
    term = {"labelSelector": {"matchLabels": _SELECTOR}, "topologyKey": "kubernetes.io/hostname"}
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def _container(values: Values) -> Object:
    resources = {
        name: amounts.as_dict()
        for name, amounts in (("requests", values.resources.requests), ("limits", values.resources.limits))
        if amounts.as_dict()
    }
    return {
        "name": CONTROL,
        "image": values.image.reference,
        "imagePullPolicy": values.image.pull_policy,
        "command": ["/opt/triomesh/bin/triomesh-control"],
        "env": _environment(values),
        "ports": [{"name": n, "containerPort": p, "protocol": "TCP"} for n, p in _PORTS.items()],
        "startupProbe": _probe("/healthz/live", period=1, failures=60),
        "readinessProbe": _probe("/healthz/ready", period=2, failures=3),
        "livenessProbe": _probe("/healthz/live", period=10, failures=6),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "triomesh-token", "mountPath": "/run/secrets/triomesh", "readOnly": True},
            {"name": "triomesh-bundle", "mountPath": "/run/triomesh/bundle", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _probe(path: str, *, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }


def _environment(values: Values) -> list[Object]:
    fields = {
        "TRIOMESH_POD_NAME": "metadata.name",
        "TRIOMESH_POD_NAMESPACE": "metadata.namespace",
        "TRIOMESH_POD_IPS": "status.podIPs",
        "TRIOMESH_SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    texts = {
        "TRIOMESH_TRUST_DOMAIN": values.trust_domain,
        "TRIOMESH_LOG_LEVEL": values.log_level,
        ENVIRONMENT_VARIABLE: as_environment(values),
    }
    return [
        *({"name": n, "valueFrom": {"fieldRef": {"fieldPath": path}}} for n, path in fields.items()),
        *({"name": n, "value": text} for n, text in texts.items()),
    ]


def _volumes() -> list[Object]:
    token = {"audience": CA_AUDIENCE, "expirationSeconds": 3600, "path": "token"}
    return [
        {"name": "triomesh-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "triomesh-bundle", "configMap": {"name": CA_BUNDLE, "optional": True}},
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
    ]


def disruption_budget(values: Values) -> Object:
    """One replica at a time, where there is more than one; a single one must not block a node's drain."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": CONTROL, "namespace": values.namespace, "labels": labels("control")},
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": _SELECTOR},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policy(values: Values) -> Object:
    """Sidecars and the API server are everywhere; the admin port is for the API server alone."""
    open_ports = [{"protocol": "TCP", "port": name} for name in _PORTS if name != "admin"]
    callers = [{"ipBlock": {"cidr": cidr}} for cidr in values.network_policy.admin_from]
    ingress: list[Object] = [{"ports": open_ports}]
    if callers:
        ingress.append({"ports": [{"protocol": "TCP", "port": "admin"}], "from": callers})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": CONTROL, "namespace": values.namespace, "labels": labels("control")},
        "spec": {
            "podSelector": {"matchLabels": _SELECTOR},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }
