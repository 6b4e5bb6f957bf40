"""Keeps the node's rules equal to the Services and EndpointSlices."""

import logging
from collections.abc import Iterable
from typing import Final, NoReturn

import trio

from mesh_local.machinery.objects import Object
from mesh_local.network import services
from mesh_local.network.node import NodeNetwork
from mesh_local.network.types import NetworkError, ObjectSource

logger = logging.getLogger(__name__)

_COALESCE_S: Final = 0.05
_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 30.0


class ServiceProxy:
    """Applies Services to a node's network.

    Args:
        network: the node, which must be up while `run` runs.
        service_source, slice_source: copies of `services` and `endpointslices.discovery.k8s.io`; somebody
            else keeps them current.

    Attributes:
        applied: the plan in force; None before the first.
    """

    def __init__(
        self, network: NodeNetwork, service_source: ObjectSource, slice_source: ObjectSource
    ) -> None:
        self.applied: services.Plan | None = None
        self._network = network
        self._services = service_source
        self._slices = slice_source
        self._changed = trio.Event()

    async def run(self) -> NoReturn:
        """Apply what is there and every change, until cancelled. What fails is logged and tried again."""
        for source in (self._services, self._slices):
            source.on_change(self._on_change)
        for source in (self._services, self._slices):
            await source.synced.wait()
        delay = _RETRY_FIRST_S
        while True:
            self._changed = trio.Event()
            try:
                await self.apply(self._services.list(), self._slices.list())
            except NetworkError as error:
                logger.error("Service rules were not applied, the former ones stay: %s", error)
                with trio.move_on_after(delay):
                    await self._changed.wait()
                delay = min(delay * 2, _RETRY_MAX_S)
                continue
            delay = _RETRY_FIRST_S
            await self._changed.wait()
            await trio.sleep(_COALESCE_S)

    def _on_change(self, _old: Object | None, _new: Object | None) -> None:
        self._changed.set()

    async def apply(self, service_list: Iterable[Object], slices: Iterable[Object]) -> None:
        """Put the plan for these objects in force, unless it is. Raises NetworkError."""
        plan = services.plan(service_list, slices, self._network.families)
        before = self.applied
        if plan == before:
            return
        for line in plan.refused:
            if before is None or line not in before.refused:
                logger.warning("%s", line)
        if before is None or plan.texts != before.texts:
            await self._network.restore(plan.texts)
        if before is None or before.udp - plan.udp:
            await self._network.forget_udp(plan.udp)
        self.applied = plan
