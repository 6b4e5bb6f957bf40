"""Starts every controller and the scheduler."""

import random
from collections.abc import Callable, Sequence
from datetime import datetime

import trio

from mesh_local.client import Client
from mesh_local.controllers import scheduler
from mesh_local.controllers.accounts import root_certificates, service_accounts
from mesh_local.controllers.deployment import DeploymentController
from mesh_local.controllers.events import Recorder
from mesh_local.controllers.everything import Everything
from mesh_local.controllers.garbage import GarbageCollector
from mesh_local.controllers.informer import Informers
from mesh_local.controllers.job import JobController, TtlController
from mesh_local.controllers.namespaces import NamespaceController
from mesh_local.controllers.podgc import PodGarbageCollector
from mesh_local.controllers.replicaset import ReplicaSetController
from mesh_local.controllers.runner import Controller, run_controller
from mesh_local.controllers.services import EndpointsController, EndpointSliceController
from mesh_local.controllers.tools import Tools
from mesh_local.kinds.base import Kind

# May read every kind: the copies that all share are made as this user.
READER = "generic-garbage-collector"
SCHEDULER = "kube-scheduler"


async def run_controllers(
    client_for: Callable[[str], Client],
    *,
    now: Callable[[], datetime],
    rng: random.Random,
    root_ca_pem: str,
    kinds: Callable[[], Sequence[Kind]],
    host: str,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until cancelled; started (for `nursery.start`) once all copies are in step.

    Args:
        client_for: a client that acts as the named controller's ServiceAccount in kube-system, or for
            `kube-scheduler` as `system:kube-scheduler`.
        now: the time of day.
        rng: spreads retries and makes names unique.
        root_ca_pem: the certificates with which pods verify the API server.
        kinds: the kinds that are served at the moment, custom ones included.
        host: the name of this machine, as the scheduler's events show it.
    """
    informers = Informers(client_for(READER), rng)
    recorders: list[Recorder] = []

    def tools(user: str, component: str = "", instance: str = "") -> Tools:
        client = client_for(user)
        recorder = Recorder(client, component or user, host=instance, now=now, rng=rng)
        recorders.append(recorder)
        return Tools(client, recorder, informers, now)

    controllers = _controllers(tools, Everything(informers, kinds), root_ca_pem)
    controllers.append(scheduler.Scheduler(tools(SCHEDULER, scheduler.NAME, host)).controller())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(informers.run)
        for recorder in recorders:
            nursery.start_soon(recorder.run)
        for controller in controllers:
            nursery.start_soon(run_controller, controller)
        await informers.synced()
        task_status.started()


def _controllers(tools: Callable[[str], Tools], everything: Everything, root_ca_pem: str) -> list[Controller]:
    """Every controller, under the name of its ServiceAccount."""
    return [
        everything.controller(),
        DeploymentController(tools("deployment-controller")).controller(),
        ReplicaSetController(tools("replicaset-controller")).controller(),
        *JobController(tools("job-controller")).controllers(),
        TtlController(tools("ttl-after-finished-controller")).controller(),
        EndpointSliceController(tools("endpointslice-controller")).controller(),
        EndpointsController(tools("endpoint-controller")).controller(),
        service_accounts(tools("service-account-controller")),
        root_certificates(tools("root-ca-cert-publisher"), root_ca_pem),
        NamespaceController(tools("namespace-controller"), everything).controller(),
        GarbageCollector(tools(READER), everything).controller(),
        PodGarbageCollector(tools("pod-garbage-collector")).controller(),
    ]
