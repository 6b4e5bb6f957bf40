"""Whatever passes decoding, the hooks of a kind judge it; they never fail themselves."""

import random
from datetime import UTC, datetime
from typing import Any

import pytest

from mesh_local.kinds.base import find
from mesh_local.kinds.builtin import BUILTIN
from mesh_local.machinery import schema
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, copy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDS = 150
POD: Object = {
    "initContainers": [{"name": "i", "image": "x", "restartPolicy": "Always", "env": [{"name": "A"}]}],
    "containers": [
        {
            "name": "c",
            "image": "x",
            "ports": [{"name": "p", "containerPort": 80, "hostPort": 80}],
            "env": [{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}}],
            "envFrom": [{"configMapRef": {"name": "m"}}],
            "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}},
            "livenessProbe": {"httpGet": {"path": "/", "port": "p"}},
            "lifecycle": {"preStop": {"exec": {"command": ["a"]}}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a"}],
            "securityContext": {"runAsUser": 1, "seccompProfile": {"type": "Localhost"}},
        }
    ],
    "volumes": [
        {"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
        {"name": "w", "downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.uid"}}]}},
        {"name": "x", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
    ],
    "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute"}],
    "securityContext": {"fsGroup": 1, "sysctls": [{"name": "a.b", "value": "1"}]},
    "dnsConfig": {"nameservers": ["10.0.0.1"]},
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}],
    "readinessGates": [{"conditionType": "a/b"}],
}
TEMPLATE: Object = {"metadata": {"labels": {"a": "b"}}, "spec": POD}
SELECTOR: Object = {
    "matchLabels": {"a": "b"},
    "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
}
SAMPLES: dict[str, Object] = {
    "pods": {"spec": POD},
    "deployments.apps": {
        "spec": {
            "selector": SELECTOR,
            "template": TEMPLATE,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
        }
    },
    "replicasets.apps": {"spec": {"selector": SELECTOR, "template": TEMPLATE, "replicas": 1}},
    "jobs.batch": {"spec": {"template": TEMPLATE, "backoffLimit": 1, "selector": SELECTOR}},
    "services": {
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.96.0.9",
            "clusterIPs": ["10.96.0.9", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "a", "port": 80, "targetPort": "b", "nodePort": 30000}],
            "externalIPs": ["192.0.2.1"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
        }
    },
    "endpointslices.discovery.k8s.io": {
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "hostname": "a", "nodeName": "n"}],
        "ports": [{"name": "a", "port": 1, "protocol": "TCP"}],
    },
    "endpoints": {"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "a", "port": 1}]}]},
    "events.events.k8s.io": {
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "series": {"count": 1, "lastObservedTime": "2026-01-01T00:00:00.000000Z"},
        "regarding": {"kind": "Pod", "name": "p", "namespace": "t"},
        "deprecatedSource": {"component": "c"},
    },
    "secrets": {"data": {"a": "YQ=="}, "stringData": {"b": "c"}, "type": "kubernetes.io/tls"},
    "servicecidrs.networking.k8s.io": {"spec": {"cidrs": ["10.96.0.0/16", "fd10::/112"]}},
    "leases.coordination.k8s.io": {"spec": {"leaseDurationSeconds": 1, "leaseTransitions": 1}},
}


def damage(value: Any, rng: random.Random) -> None:
    """Take something away, or empty it, somewhere in `value`."""
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.3 or not isinstance(value[key], dict | list):
            if rng.random() < 0.4:
                del value[key]
            elif isinstance(value[key], int):
                value[key] = rng.choice([-1, 0, 2**40])
            else:
                value[key] = rng.choice([type(value[key])(), None])
            return
        value = value[key]


@pytest.mark.parametrize("resource", SAMPLES)
def test_hooks_survive_whatever_decoding_lets_through(resource: str) -> None:
    kind, rng = find(BUILTIN, resource), random.Random(resource)
    assert kind is not None
    judged = 0
    for _ in range(ROUNDS):
        sample = copy(SAMPLES[resource])
        for _ in range(rng.randint(1, 4)):
            damage(sample, rng)
        sample["metadata"] = {"name": "x", "namespace": "t", "uid": "u"}
        try:
            obj = schema.decode(kind.definition, sample, kind=kind.kind, version=kind.version).object
        except ApiError:
            continue
        kind.default(obj)
        kind.prepare_create(obj)
        errors = kind.validate(obj)
        assert all(str(error) for error in errors)
        other = copy(obj)
        kind.prepare_update(other, obj)
        assert all(str(error) for error in kind.validate_update(other, obj))
        if not errors:
            assert len(kind.row(obj, NOW)) == len(kind.columns)
        assert all(isinstance(text, str) for text in kind.warnings(obj))
        assert all(isinstance(read(obj), str) for read in kind.fields.values())
        kind.from_stored(kind.to_stored(obj))
        judged += 1
    assert judged > ROUNDS // 3
