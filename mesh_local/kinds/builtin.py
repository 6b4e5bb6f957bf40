"""Every built-in kind of the local cluster."""

from mesh_local.kinds import (
    admissionregistration,
    config,
    crd,
    endpoints,
    event,
    job,
    lease,
    namespace,
    node,
    pod,
    rbac,
    reviews,
    service,
    service_account,
    service_cidr,
    workloads,
)
from mesh_local.kinds.base import Kind

BUILTIN: tuple[Kind, ...] = (
    *config.KINDS,
    *endpoints.KINDS,
    *event.KINDS,
    *namespace.KINDS,
    *node.KINDS,
    *pod.KINDS,
    *service_account.KINDS,
    *service.KINDS,
    *service_cidr.KINDS,
    *workloads.KINDS,
    *job.KINDS,
    *lease.KINDS,
    *rbac.KINDS,
    *reviews.KINDS,
    *admissionregistration.KINDS,
    *crd.KINDS,
)
