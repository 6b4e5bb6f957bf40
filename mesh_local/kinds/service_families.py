"""IP families of a Service: what follows from its author's wishes and from the cluster (KEP-563)."""

from collections.abc import Sequence

from mesh_local.kinds.service_validation import FAMILIES, NONE, cluster_ip_errors, family_of
from mesh_local.machinery.errors import FieldError, invalid_value
from mesh_local.machinery.objects import Object, copy

SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"
_POLICY = "spec.ipFamilyPolicy"
_MANY = "must be 'RequireDualStack' or 'PreferDualStack' when multiple {} are specified"


def sync_cluster_ips(spec: Object, old: Object | None) -> None:
    """Make `clusterIP` and `clusterIPs` agree, whichever of the two the client knows of."""
    if old is None:
        if spec.get("clusterIP") and not spec.get("clusterIPs"):
            spec["clusterIPs"] = [spec["clusterIP"]]
        return
    single, before = spec.get("clusterIP") or "", old.get("clusterIP") or ""
    same = (spec.get("clusterIPs") or []) == (old.get("clusterIPs") or [])
    if not spec.get("clusterIPs") and single == before and old.get("clusterIPs"):
        spec["clusterIPs"] = list(old["clusterIPs"])
    elif single != before and same:
        spec["clusterIPs"] = [single] if single else []


def keep_cluster_ips(spec: Object, old: Object) -> None:
    """A client that leaves the addresses out keeps them."""
    if "ExternalName" in (spec.get("type"), old.get("type")):
        return
    for key in ("clusterIP", "clusterIPs"):
        if not spec.get(key) and old.get(key):
            spec[key] = copy(old[key])


def choose_families(spec: Object, old: Object | None, cluster: Sequence[str]) -> list[FieldError]:
    """Fill in `ipFamilyPolicy` and `ipFamilies`; what is wrong with them.

    Args:
        spec: changed in place; not of type ExternalName.
        cluster: the families of the cluster, the default one first.
    """
    if old is not None and _settled(spec, old):
        return []
    if not spec.get("ipFamilyPolicy"):
        spec["ipFamilyPolicy"] = _default_policy(spec, old)
    if errors := cluster_ip_errors(spec):
        return errors
    errors = _reduced(spec, old) if old is not None else []
    errors += _single_with_two(spec)
    errors += _infer_families(spec, cluster)
    if errors:
        return errors
    families: list[str] = spec["ipFamilies"]
    dual = spec["ipFamilyPolicy"] != SINGLE
    if spec.get("clusterIP") == NONE and not spec.get("selector"):
        # Endpoints made by hand may have families that the cluster does not.
        families[:] = families or [cluster[0]]
        _add_other(families, dual)
        return []
    if errors := _fit_cluster(spec, families, cluster):
        return errors
    _add_other(families, dual and len(cluster) == 2)
    return []


def _fit_cluster(spec: Object, families: list[str], cluster: Sequence[str]) -> list[FieldError]:
    """The cluster must have what is asked for; without a wish its default family is taken."""
    errors = []
    if spec["ipFamilyPolicy"] == REQUIRE and len(cluster) < 2:
        errors.append(
            invalid_value(_POLICY, REQUIRE, "this cluster is not configured for dual-stack services")
        )
    errors += [
        invalid_value(f"spec.ipFamilies[{i}]", family, "not configured on this cluster")
        for i, family in enumerate(families)
        if family not in cluster
    ]
    if not errors and not families:
        families.append(cluster[0])
    return errors


def _settled(spec: Object, old: Object) -> bool:
    """A PreferDualStack Service whose fields did not change stays as it is, whatever the cluster has now."""
    keys = ("ipFamilyPolicy", "ipFamilies", "clusterIPs")
    return old.get("ipFamilyPolicy") == PREFER and all(spec.get(k) == old.get(k) for k in keys)


def _default_policy(spec: Object, old: Object | None) -> str:
    if old and old.get("ipFamilyPolicy"):
        return str(old["ipFamilyPolicy"])
    return REQUIRE if spec.get("clusterIP") == NONE and not spec.get("selector") else SINGLE


def _reduced(spec: Object, old: Object) -> list[FieldError]:
    """Going back to one family takes a policy that says so; then the second address is dropped."""
    errors = []
    for key, what in (("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")):
        now, before = spec.get(key) or [], old.get(key) or []
        if spec["ipFamilyPolicy"] == SINGLE:
            if now == before:
                spec[key] = now[:1]
        elif len(before) == 2 and len(now) == 1 and before[0] == now[0]:
            detail = f"must be 'SingleStack' to release the secondary {what}"
            errors.append(invalid_value(_POLICY, spec["ipFamilyPolicy"], detail))
    return errors


def _single_with_two(spec: Object) -> list[FieldError]:
    if spec["ipFamilyPolicy"] != SINGLE:
        return []
    return [
        invalid_value(_POLICY, SINGLE, _MANY.format(what))
        for key, what in (("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families"))
        if len(spec.get(key) or ()) == 2
    ]


def _infer_families(spec: Object, cluster: Sequence[str]) -> list[FieldError]:
    """Families that follow from given addresses."""
    ips, families = spec.get("clusterIPs") or [], list(spec.get("ipFamilies") or ())
    errors = []
    for i, ip in enumerate(ips):
        if ip == NONE:
            break
        if i < len(families):
            continue
        family = family_of(ip)
        if family in cluster:
            families.append(family)
        else:
            detail = f"{family} is not configured on this cluster"
            errors.append(invalid_value(f"spec.clusterIPs[{i}]", ips, detail))
    spec["ipFamilies"] = families
    return errors


def _add_other(families: list[str], dual: bool) -> None:
    if dual and len(families) == 1:
        families.append(FAMILIES[1 - FAMILIES.index(families[0])])
