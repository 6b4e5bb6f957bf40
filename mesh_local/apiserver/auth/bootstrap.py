"""The roles and bindings that every cluster has from the start, and the users of its own components.

Rules follow Kubernetes' bootstrap policy, for the kinds that this cluster serves.
"""

from collections.abc import Sequence

from mesh_local.apiserver.auth.rbac import GROUP as RBAC
from mesh_local.apiserver.types import User
from mesh_local.machinery.objects import Object, copy

CONTROLLER_NAMESPACE = "kube-system"
KUBELET_PREFIX = "system:node:"
NODES_GROUP = "system:nodes"
SCHEDULER = User("system:kube-scheduler", groups=("system:authenticated",))
PROXY = User("system:kube-proxy", groups=("system:authenticated",))

EVERY = ("*",)
CORE = ("",)
READ = ("get", "list", "watch")
WRITE = ("create", "delete", "deletecollection", "patch", "update")
APPS, BATCH, DISCOVERY, LEASES = "apps", "batch", "discovery.k8s.io", "coordination.k8s.io"
AUTHENTICATION, AUTHORIZATION = "authentication.k8s.io", "authorization.k8s.io"


def allow(
    verbs: Sequence[str], groups: Sequence[str], resources: Sequence[str], names: Sequence[str] = ()
) -> Object:
    """A rule on resources."""
    rule: Object = {"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)}
    return rule | ({"resourceNames": list(names)} if names else {})


def allow_urls(*urls: str, verbs: Sequence[str] = ("get",)) -> Object:
    """A rule on paths that name no resource."""
    return {"verbs": list(verbs), "nonResourceURLs": list(urls)}


EVENTS = allow(("create", "patch", "update"), ("", "events.k8s.io"), ("events",))

# view, edit and admin: each has the rules of the one before.
_VIEW = [
    allow(
        READ,
        CORE,
        (
            "configmaps",
            "endpoints",
            "persistentvolumeclaims",
            "pods",
            "replicationcontrollers",
            "serviceaccounts",
            "services",
            "services/status",
        ),
    ),
    allow(
        READ,
        CORE,
        ("events", "limitranges", "namespaces/status", "pods/log", "pods/status", "resourcequotas"),
    ),
    allow(READ, CORE, ("namespaces",)),
    allow(READ, (DISCOVERY,), ("endpointslices",)),
    allow(
        READ,
        (APPS,),
        (
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "statefulsets",
            "statefulsets/scale",
            "statefulsets/status",
        ),
    ),
    allow(READ, (BATCH,), ("cronjobs", "cronjobs/status", "jobs", "jobs/status")),
    allow(READ, ("networking.k8s.io",), ("ingresses", "ingresses/status", "networkpolicies")),
]
_EDIT = [
    allow(
        READ,
        CORE,
        ("pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"),
    ),
    allow(("impersonate",), CORE, ("serviceaccounts",)),
    allow(WRITE, CORE, ("pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy")),
    allow(("create",), CORE, ("pods/eviction",)),
    allow(
        WRITE,
        CORE,
        (
            "configmaps",
            "events",
            "persistentvolumeclaims",
            "secrets",
            "serviceaccounts",
            "services",
            "services/proxy",
        ),
    ),
    allow(("create",), CORE, ("serviceaccounts/token",)),
    allow(
        WRITE,
        (APPS,),
        (
            "daemonsets",
            "deployments",
            "deployments/rollback",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ),
    ),
    allow(WRITE, (BATCH,), ("cronjobs", "jobs")),
    allow(WRITE, ("networking.k8s.io",), ("ingresses", "networkpolicies")),
    allow((*WRITE, *READ), (LEASES,), ("leases",)),
]
_ADMIN = [
    allow(("create",), (AUTHORIZATION,), ("localsubjectaccessreviews",)),
    allow((*WRITE, *READ), (RBAC,), ("rolebindings", "roles")),
]

_HEALTH = ("/healthz", "/livez", "/readyz", "/version", "/version/")
_DISCOVERY_URLS = ("/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*")

_NODE = [
    allow(("create",), (AUTHENTICATION,), ("tokenreviews",)),
    allow(("create",), (AUTHORIZATION,), ("localsubjectaccessreviews", "subjectaccessreviews")),
    allow(READ, CORE, ("services",)),
    allow(("create", "get", "list", "watch"), CORE, ("nodes",)),
    allow(("patch", "update"), CORE, ("nodes", "nodes/status")),
    allow(("create", "patch", "update"), ("", "events.k8s.io"), ("events",)),
    allow((*READ, "create", "delete"), CORE, ("pods",)),
    allow(("patch", "update"), CORE, ("pods/status",)),
    allow(("create",), CORE, ("pods/eviction",)),
    allow(READ, CORE, ("configmaps", "secrets")),
    allow(("get",), CORE, ("serviceaccounts",)),
    allow(("get",), CORE, ("endpoints",)),
    allow(("create",), CORE, ("serviceaccounts/token",)),
    allow(("create", "delete", "get", "patch", "update"), (LEASES,), ("leases",)),
]
_SCHEDULER = [
    EVENTS,
    allow(("create", "get", "update"), (LEASES,), ("leases",)),
    allow(READ, CORE, ("namespaces", "nodes")),
    allow(("delete", *READ), CORE, ("pods",)),
    allow(("create",), CORE, ("bindings", "pods/binding")),
    allow(("patch", "update"), CORE, ("pods/status",)),
]
_PROXIER = [
    allow(("list", "watch"), CORE, ("endpoints", "services")),
    allow(READ, CORE, ("nodes",)),
    EVENTS,
    allow(("list", "watch"), (DISCOVERY,), ("endpointslices",)),
]

CLUSTER_ROLES: dict[str, list[Object]] = {
    "cluster-admin": [allow(EVERY, EVERY, EVERY), allow_urls("*", verbs=EVERY)],
    "admin": [*_ADMIN, *_EDIT, *_VIEW],
    "edit": [*_EDIT, *_VIEW],
    "view": _VIEW,
    "system:discovery": [allow_urls(*_DISCOVERY_URLS, "/readyz", "/version", "/version/")],
    "system:basic-user": [
        allow(("create",), (AUTHORIZATION,), ("selfsubjectaccessreviews", "selfsubjectrulesreviews")),
        allow(("create",), (AUTHENTICATION,), ("selfsubjectreviews",)),
    ],
    "system:public-info-viewer": [allow_urls(*_HEALTH)],
    "system:service-account-issuer-discovery": [
        allow_urls(
            "/.well-known/openid-configuration",
            "/.well-known/openid-configuration/",
            "/openid/v1/jwks",
            "/openid/v1/jwks/",
        )
    ],
    "system:auth-delegator": [
        allow(("create",), (AUTHENTICATION,), ("tokenreviews",)),
        allow(("create",), (AUTHORIZATION,), ("subjectaccessreviews",)),
    ],
    "system:monitoring": [
        allow_urls("/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz")
    ],
    "system:node": _NODE,
    "system:kube-scheduler": _SCHEDULER,
    "system:node-proxier": _PROXIER,
}

# Cluster-wide bindings of the roles above: role -> subjects as (kind, name).
CLUSTER_BINDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "cluster-admin": (("Group", "system:masters"),),
    "system:discovery": (("Group", "system:authenticated"),),
    "system:basic-user": (("Group", "system:authenticated"),),
    "system:public-info-viewer": (("Group", "system:authenticated"), ("Group", "system:unauthenticated")),
    "system:service-account-issuer-discovery": (("Group", "system:serviceaccounts"),),
    "system:monitoring": (("Group", "system:monitoring"),),
    # Kubernetes has the Node authorizer instead; here the one node may see every pod anyway.
    "system:node": (("Group", NODES_GROUP),),
    "system:kube-scheduler": (("User", SCHEDULER.name),),
    "system:node-proxier": (("User", PROXY.name),),
}

# Each controller acts as its own ServiceAccount in kube-system, bound to system:controller:NAME.
CONTROLLERS: dict[str, list[Object]] = {
    "deployment-controller": [
        allow((*READ, "update"), (APPS,), ("deployments",)),
        allow(("update",), (APPS,), ("deployments/status", "deployments/finalizers")),
        allow((*READ, "create", "update", "patch", "delete"), (APPS,), ("replicasets",)),
        allow((*READ, "update"), CORE, ("pods",)),
        EVENTS,
    ],
    "replicaset-controller": [
        allow((*READ, "update"), (APPS,), ("replicasets",)),
        allow(("update",), (APPS,), ("replicasets/status", "replicasets/finalizers")),
        allow((*READ, "create", "delete", "patch"), CORE, ("pods",)),
        EVENTS,
    ],
    "job-controller": [
        allow((*READ, "update", "patch"), (BATCH,), ("jobs",)),
        allow(("update",), (BATCH,), ("jobs/status", "jobs/finalizers")),
        allow((*READ, "create", "delete", "patch"), CORE, ("pods",)),
        EVENTS,
    ],
    "ttl-after-finished-controller": [allow((*READ, "delete"), (BATCH,), ("jobs",)), EVENTS],
    "endpointslice-controller": [
        allow(READ, CORE, ("services", "pods", "nodes")),
        allow(("update",), CORE, ("services/finalizers",)),
        allow((*READ, "create", "update", "delete"), (DISCOVERY,), ("endpointslices",)),
        allow(("create",), (DISCOVERY,), ("endpointslices/restricted",)),
        EVENTS,
    ],
    "endpoint-controller": [
        allow(READ, CORE, ("services", "pods")),
        allow((*READ, "create", "update", "delete"), CORE, ("endpoints",)),
        allow(("create",), CORE, ("endpoints/restricted",)),
        EVENTS,
    ],
    "namespace-controller": [
        allow((*READ, "delete"), CORE, ("namespaces",)),
        allow(("update",), CORE, ("namespaces/finalize", "namespaces/status")),
        allow(("get", "list", "watch", "delete", "deletecollection"), EVERY, EVERY),
    ],
    "generic-garbage-collector": [allow((*READ, "patch", "update", "delete"), EVERY, EVERY), EVENTS],
    "pod-garbage-collector": [
        allow((*READ, "delete"), CORE, ("pods",)),
        allow(READ, CORE, ("nodes",)),
        allow(("patch",), CORE, ("pods/status",)),
    ],
    "service-account-controller": [
        allow(READ, CORE, ("namespaces",)),
        allow((*READ, "create"), CORE, ("serviceaccounts",)),
        EVENTS,
    ],
    "root-ca-cert-publisher": [
        allow(READ, CORE, ("namespaces",)),
        allow((*READ, "create", "update"), CORE, ("configmaps",)),
        EVENTS,
    ],
}


def kubelet_user(node: str) -> User:
    """The user of the kubelet of a node."""
    return User(f"{KUBELET_PREFIX}{node}", groups=(NODES_GROUP, "system:authenticated"))


def controller_user(name: str, uid: str = "") -> User:
    """The user of one of `CONTROLLERS`; `uid` is that of its ServiceAccount."""
    groups = (
        "system:serviceaccounts",
        f"system:serviceaccounts:{CONTROLLER_NAMESPACE}",
        "system:authenticated",
    )
    return User(f"system:serviceaccount:{CONTROLLER_NAMESPACE}:{name}", uid, groups)


def bootstrap_objects() -> list[Object]:
    """Every default ClusterRole and ClusterRoleBinding, to be created where it is absent."""
    objects = [_role(name, rules) for name, rules in CLUSTER_ROLES.items()]
    for role, subjects in CLUSTER_BINDINGS.items():
        shown = [{"apiGroup": RBAC, "kind": kind, "name": name} for kind, name in subjects]
        objects.append(_binding(role, role, shown))
    for name, rules in CONTROLLERS.items():
        role = f"system:controller:{name}"
        account = {"kind": "ServiceAccount", "name": name, "namespace": CONTROLLER_NAMESPACE}
        objects += [_role(role, rules), _binding(role, role, [account])]
    return objects


def _metadata(name: str) -> Object:
    return {
        "name": name,
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    }


def _role(name: str, rules: Sequence[Object]) -> Object:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": _metadata(name),
        "rules": copy(list(rules)),
    }


def _binding(name: str, role: str, subjects: Sequence[Object]) -> Object:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": _metadata(name),
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": copy(list(subjects)),
    }
