"""The admission plugins of a cluster, in Kubernetes' order.

Mutation runs through the whole list, then validation through the whole list. Mutating webhooks come after
the built-in mutation of Pods and before addresses are allocated to Services (in Kubernetes the Service
registry allocates, after all admission); validating ones come last.
"""

import random
from dataclasses import dataclass

from mesh_local.apiserver.admission.lifecycle import NamespaceLifecycle, NamespaceStays
from mesh_local.apiserver.admission.pod_defaults import DefaultTolerations, Priority
from mesh_local.apiserver.admission.pod_security import PodSecurity
from mesh_local.apiserver.admission.service_account import ServiceAccounts
from mesh_local.apiserver.admission.service_ips import ServiceIps
from mesh_local.apiserver.admission.webhooks import MutatingWebhooks, ValidatingWebhooks, WebhookCaller
from mesh_local.apiserver.types import AdmissionPlugin, Reader


@dataclass(frozen=True, slots=True)
class ChainOptions:
    """What the plugins need to know of the cluster.

    Args:
        service_cidrs: one network for a single-stack cluster, two (the default family first) for dual stack.
        node_ports: lowest and highest node port.
    """

    rng: random.Random
    service_cidrs: tuple[str, ...] = ("10.96.0.0/16",)
    node_ports: tuple[int, int] = (30000, 32767)


def builtin_plugins(
    reader: Reader, options: ChainOptions, webhooks: WebhookCaller | None = None
) -> list[AdmissionPlugin]:
    """The whole chain; without `webhooks` no webhook is called."""
    plugins: list[AdmissionPlugin] = [
        NamespaceLifecycle(reader),
        ServiceAccounts(reader, options.rng),
        PodSecurity(reader),
        Priority(),
        DefaultTolerations(),
    ]
    if webhooks is not None:
        plugins.append(MutatingWebhooks(webhooks, tuple(plugins)))
    plugins.append(ServiceIps(reader, options.service_cidrs, options.node_ports, options.rng))
    if webhooks is not None:
        plugins += [ValidatingWebhooks(webhooks), NamespaceStays(reader)]
    return plugins
