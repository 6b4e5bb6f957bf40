"""The Pod Security Standards, in the words that were recorded on Kubernetes 1.36."""

import pytest

from mesh_local.kinds.pod_security import describe, violations
from mesh_local.machinery.objects import Object

NET: Object = {
    "initContainers": [
        {"name": "init", "securityContext": {"capabilities": {"add": ["NET_RAW", "NET_ADMIN"]}}}
    ],
    "containers": [{"name": "app"}],
}
HOST: Object = {
    "hostNetwork": True,
    "volumes": [{"name": "h", "hostPath": {"path": "/"}}],
    "containers": [{"name": "app", "securityContext": {"privileged": True, "runAsUser": 0}}],
}
GOOD: Object = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "v", "emptyDir": {}}],
    "containers": [
        {
            "name": "app",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}
MORE_CAPABILITIES = 'must not include "NET_ADMIN", "NET_RAW" in securityContext.capabilities.add'


def told(spec: Object, level: str) -> str:
    return describe(violations(spec, level))


def test_privileged_allows_everything() -> None:
    assert violations(HOST, "privileged") == []


def test_baseline() -> None:
    assert told(NET, "baseline") == f'non-default capabilities (container "init" {MORE_CAPABILITIES})'
    assert told(HOST, "baseline") == (
        'host namespaces (hostNetwork=true), hostPath volumes (volume "h"), '
        'privileged (container "app" must not set securityContext.privileged=true)'
    )
    assert told({"containers": [{"name": "app"}]}, "baseline") == ""


def test_restricted_names_every_container() -> None:
    both = 'containers "init", "app"'
    assert told(NET, "restricted") == (
        f"allowPrivilegeEscalation != false ({both} must set "
        "securityContext.allowPrivilegeEscalation=false), "
        f'unrestricted capabilities ({both} must set securityContext.capabilities.drop=["ALL"]; '
        f'container "init" {MORE_CAPABILITIES}), '
        f"runAsNonRoot != true (pod or {both} must set securityContext.runAsNonRoot=true), "
        f"seccompProfile (pod or {both} must set securityContext.seccompProfile.type to "
        '"RuntimeDefault" or "Localhost")'
    )


def test_restricted_takes_the_place_of_weaker_checks() -> None:
    app = 'container "app"'
    assert told(HOST, "restricted") == (
        "host namespaces (hostNetwork=true), "
        f"privileged ({app} must not set securityContext.privileged=true), "
        f"allowPrivilegeEscalation != false ({app} must set "
        "securityContext.allowPrivilegeEscalation=false), "
        f'unrestricted capabilities ({app} must set securityContext.capabilities.drop=["ALL"]), '
        'restricted volume types (volume "h" uses restricted volume type "hostPath"), '
        f"runAsNonRoot != true (pod or {app} must set securityContext.runAsNonRoot=true), "
        f"runAsUser=0 ({app} must not set runAsUser=0), "
        f"seccompProfile (pod or {app} must set securityContext.seccompProfile.type to "
        '"RuntimeDefault" or "Localhost")'
    )


def test_a_careful_pod_is_restricted() -> None:
    assert violations(GOOD, "restricted") == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
            'seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")',
        ),
        (
            {"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}},
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            {"securityContext": {"seLinuxOptions": {"type": "bad", "user": "u"}}},
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: "
            'type "bad"; user may not be set)',
        ),
        (
            {
                "securityContext": {"seLinuxOptions": {"type": "foo"}},
                "containers": [{"name": "d", "securityContext": {"seLinuxOptions": {"type": "bar"}}}],
            },
            'seLinuxOptions (pod and container "d" set forbidden securityContext.seLinuxOptions: '
            'types "bar", "foo")',
        ),
        (
            {
                "containers": [
                    {"name": "a", "livenessProbe": {"httpGet": {"port": 1, "host": "bad.example.com"}}}
                ]
            },
            'probe or lifecycle host (container "a" uses probe or lifecycle host "bad.example.com")',
        ),
        (
            {"containers": [{"name": "a", "ports": [{"hostPort": 80}]}]},
            'hostPort (container "a" uses hostPort 80)',
        ),
        (
            {"containers": [{"name": "a", "securityContext": {"procMount": "Unmasked"}}]},
            'procMount (container "a" must not set securityContext.procMount to "Unmasked")',
        ),
    ],
)
def test_the_rarer_checks_of_baseline(change: Object, text: str) -> None:
    assert told({"containers": [{"name": "a"}], **change}, "baseline") == text
