"""The control plane's namespace, Deployments, Services, and what protects them."""

import json
from typing import Any

from manifests.injection import ENVIRONMENT_VARIABLE, as_environment
from manifests.names import CA_AUDIENCE, CA_BUNDLE, CONTROL, VALUES_ANNOTATION, labels
from manifests.parts import PORTS, SERVICES, Part, part_behind, parts
from manifests.values import Values, to_plain

Object = dict[str, Any]
UID = 1337


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


def services(values: Values) -> list[Object]:
    """One a role. The first has every port of the pods behind it."""
    return [_service(values, name) for name in SERVICES]


def _service(values: Values, name: str) -> Object:
    behind = part_behind(values, name)
    ports = [
        {
            "name": port,
            "port": 443 if port == "webhook" else PORTS[port],
            "protocol": "TCP",
            "targetPort": port,
        }
        for port in (behind.ports if behind.name == name else SERVICES[name])
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, behind, values),
        "spec": {"type": "ClusterIP", "selector": behind.selector, "ports": ports},
    }


def _metadata(name: str, part: Part, values: Values) -> Object:
    return {"name": name, "namespace": values.namespace, "labels": labels(part.component)}


def deployments(values: Values) -> list[Object]:
    """One a part."""
    return [_deployment(values, part) for part in parts(values)]


def _deployment(values: Values, part: Part) -> Object:
    metadata = _metadata(part.name, part, values)
    if part.name == CONTROL:
        # What an upgrade starts from: the choices of this installation.
        metadata["annotations"] = {VALUES_ANNOTATION: json.dumps(to_plain(values), sort_keys=True)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": values.replicas,
            "revisionHistoryLimit": 5,
            "selector": {"matchLabels": part.selector},
            # The old replica stays until the new one has synced: sidecars always find one.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {**part.selector, "app.kubernetes.io/part-of": "triomesh"}},
                "spec": _pod(values, part),
            },
        },
    }


def _pod(values: Values, part: Part) -> Object:
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
        "affinity": _apart(part),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": part.selector},
            }
        ],
        "containers": [_container(values, part)],
        "volumes": _volumes(),
    }
    if values.image.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in values.image.pull_secrets]
    return spec


def _apart(part: Part) -> Object:
    term = {"labelSelector": {"matchLabels": part.selector}, "topologyKey": "kubernetes.io/hostname"}
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def _container(values: Values, part: Part) -> Object:
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
        "env": _environment(values, part),
        "ports": [{"name": n, "containerPort": PORTS[n], "protocol": "TCP"} for n in part.ports],
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


def _environment(values: Values, part: Part) -> list[Object]:
    fields = {
        "TRIOMESH_POD_NAME": "metadata.name",
        "TRIOMESH_POD_NAMESPACE": "metadata.namespace",
        "TRIOMESH_POD_IPS": "status.podIPs",
        "TRIOMESH_SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    texts = {
        "TRIOMESH_TRUST_DOMAIN": values.trust_domain,
        "TRIOMESH_LOG_LEVEL": values.log_level,
        "TRIOMESH_ROLES": ",".join(part.roles),
        "TRIOMESH_CA_CHECK_PEER_ADDRESS": "true" if values.ca.check_peer_address else "false",
        "TRIOMESH_LEAF_LIFETIME_S": str(values.ca.leaf_lifetime_seconds),
        "TRIOMESH_CLUSTER_NETWORKS": ",".join(values.cluster_networks),
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


def disruption_budgets(values: Values) -> list[Object]:
    """One replica of a part at a time, where there is more than one; a single one must not block a drain."""
    if values.replicas == 1:
        return []
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _metadata(part.name, part, values),
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": part.selector},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
        for part in parts(values)
    ]


def network_policies(values: Values) -> list[Object]:
    """Sidecars and the API server are everywhere; the admin port is for the API server and other replicas."""
    return [_network_policy(values, part) for part in parts(values)]


def _network_policy(values: Values, part: Part) -> Object:
    open_ports = [{"protocol": "TCP", "port": PORTS[name]} for name in part.ports if name != "admin"]
    callers: list[Object] = [{"podSelector": {"matchLabels": part.selector}}]
    callers += [{"ipBlock": {"cidr": cidr}} for cidr in values.network_policy.admin_from]
    ingress: list[Object] = [{"ports": open_ports}]
    if "admin" in part.ports:
        ingress.append({"ports": [{"protocol": "TCP", "port": PORTS["admin"]}], "from": callers})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(part.name, part, values),
        "spec": {
            "podSelector": {"matchLabels": part.selector},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }
