"""What must be so before an installation, and what in a cluster goes around a sidecar."""

from manifests.render import crds, render
from meshctl.apply import described
from meshctl.checks.model import Check, Result, Target, failed, passed, warning
from meshctl.kube import Resource

_CILIUM = "cilium-config"


def _permissions(target: Target) -> Result:
    asked: dict[tuple[Resource, str | None], list[str]] = {}
    for obj in render(target.values):
        resource = target.kube.resource(obj["apiVersion"], obj["kind"])
        key = resource, obj["metadata"].get("namespace")
        if resource is None or key in asked:
            continue
        verbs = [v for v in ("get", "create", "update") if not target.kube.allowed(v, resource, key[1])]
        asked[resource, key[1]] = verbs
    missing = [f"{', '.join(verbs)} {described(*key)}" for key, verbs in asked.items() if verbs]
    return failed("you are not allowed to", missing) if missing else passed(f"{len(asked)} kinds")


def _crd_versions(target: Target) -> Result:
    wrong = []
    for crd in crds():
        name = crd["metadata"]["name"]
        live = target.kube.find(crd["apiVersion"], crd["kind"], name)
        ours = {version["name"] for version in crd["spec"]["versions"]}
        stored = set((live or {}).get("status", {}).get("storedVersions") or [])
        if stored - ours:
            wrong.append(f"{name} stores {', '.join(sorted(stored))}, expected {', '.join(sorted(ours))}")
    return failed("definitions of another version are there", wrong) if wrong else passed()


def _kinds(target: Target) -> Result:
    missing = {
        f"{obj['kind']} ({obj['apiVersion']})"
        for obj in render(target.values)
        if target.kube.resource(obj["apiVersion"], obj["kind"]) is None
    }
    return warning("left out: the server does not have", sorted(missing)) if missing else passed()


def _translated_early(target: Target) -> Result:
    config = target.kube.find("v1", "ConfigMap", _CILIUM, "kube-system")
    if config is None:
        return passed("no Cilium")
    data = config.get("data") or {}
    replaced = data.get("kube-proxy-replacement") in ("true", "strict") or data.get("bpf-lb-sock") == "true"
    if replaced and data.get("bpf-lb-sock-hostns-only") != "true":
        return failed("Cilium translates Service addresses inside pods, before the sidecar sees them")
    return passed("Cilium leaves Service addresses in pods alone")


PERMISSIONS = Check(
    "permissions",
    "you may install the mesh",
    "ask an administrator of the cluster (cluster-admin can), or for these verbs",
    _permissions,
)
CRD_VERSIONS = Check(
    "crd-versions",
    "no custom resources of another version are in the way",
    "use the meshctl that installed them, or uninstall --purge with it",
    _crd_versions,
)
KINDS = Check(
    "kinds",
    "the server has every kind that is installed",
    "nothing to do: the mesh works without; a real cluster has them",
    _kinds,
)
TRANSLATED_EARLY = Check(
    "vip-translation",
    "Service addresses reach the sidecar untranslated",
    "set socketLB.hostNamespaceOnly=true in Cilium's Helm values and restart its agents",
    _translated_early,
)
