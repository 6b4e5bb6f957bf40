"""An API server in process on a temporary directory, with every kind and nobody refused."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mesh_local.apiserver.api import Api
from mesh_local.apiserver.client import LocalClient
from mesh_local.apiserver.core import Core
from mesh_local.apiserver.registry import Registry
from mesh_local.apiserver.store import Store
from mesh_local.apiserver.types import AdmissionPlugin, Attributes, Authorizer, Decision, LogSource, User
from mesh_local.kinds.base import Kind
from mesh_local.kinds.builtin import BUILTIN

ADMIN = User("admin", groups=("system:masters", "system:authenticated"))


class AllowAll:
    """An authoriser that refuses nothing."""

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        return Decision(True)


@dataclass
class LocalApi:
    """What `local_api` builds; `client` acts as the administrator."""

    api: Api
    client: LocalClient
    store: Store


@asynccontextmanager
async def local_api(
    directory: Path,
    *,
    kinds: Sequence[Kind] = BUILTIN,
    authorizer: Authorizer | None = None,
    plugins: Sequence[AdmissionPlugin] = (),
    log_source: LogSource | None = None,
) -> AsyncIterator[LocalApi]:
    """Run inside `trio.run`; the database is `directory/state.db` and outlives the context."""
    store = Store(directory / "state.db")
    try:
        core = Core(
            store=store,
            registry=Registry(kinds),
            authorizer=authorizer or AllowAll(),
            plugins=plugins,
            now=lambda: datetime.now(UTC),
            rng=random.Random(1),
            log_source=log_source,
        )
        api = Api(core)
        yield LocalApi(api, LocalClient(api, ADMIN), store)
    finally:
        store.close()
