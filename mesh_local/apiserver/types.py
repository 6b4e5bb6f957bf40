"""The seams inside the API server: who calls (`User`), what they ask (`Attributes`), and what plugs in."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from mesh_local.kinds.base import Kind
from mesh_local.machinery.objects import Object


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated caller (authentication.k8s.io/v1 UserInfo)."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


ANONYMOUS = User("system:anonymous", groups=("system:unauthenticated",))


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a request wants, as RBAC sees it. `path` is set for non-resource requests, with the lower-case
    HTTP method as verb; otherwise `resource` is the plural (`pods`)."""

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str = ""


class Reader(Protocol):
    """Synchronous reads of the newest state; what they return must not be changed."""

    def get(self, resource: str, name: str, namespace: str = "") -> Object | None: ...

    def list(self, resource: str, namespace: str = "") -> Sequence[Object]:
        """All objects, or those of one namespace, in key order."""
        ...


class Authorizer(Protocol):
    def authorize(self, user: User, attributes: Attributes) -> Decision: ...


class Authenticator(Protocol):
    async def authenticate(self, token: str | None, certificate: bytes | None) -> User:
        """The caller that a bearer token or a verified client certificate (DER) names; neither: `ANONYMOUS`.

        Raises:
            ApiError: 401, for a token that is not valid.
        """
        ...


@dataclass(slots=True)
class Admission:
    """One write on its way to the store. Mutating plugins change `object`; all may append to `warnings`.

    Args:
        operation: CREATE, UPDATE, DELETE or CONNECT.
        object: the new object; None for DELETE.
        old: the stored object; None for CREATE.
        options: the CreateOptions, UpdateOptions or DeleteOptions of the request, with kind and apiVersion.
    """

    operation: str
    kind: Kind
    name: str
    namespace: str
    subresource: str
    object: Object | None
    old: Object | None
    options: Object
    user: User
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)


class AdmissionPlugin(Protocol):
    """Runs in the order of the chain; raises ApiError to refuse."""

    async def mutate(self, request: Admission) -> None: ...

    async def validate(self, request: Admission) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a special endpoint: a subresource that is not stored (`token`, `binding`, `log`,
    `proxy`) or a virtual kind (TokenReview, SubjectAccessReview). `body` is decoded, defaulted and strict;
    None where there is none.
    """

    user: User
    kind: Kind
    name: str
    namespace: str
    subresource: str
    verb: str
    body: Object | None
    query: Mapping[str, str]
    dry_run: bool = False


class HttpEndpoint(Protocol):
    """Serves a subresource that answers in HTTP itself (`services/proxy`), with any method.

    Registered with `face.app.App.register`. `call.verb` is get, create, update, patch or delete, `call.body`
    None. ApiError raised before the answer began becomes the answer. The first three are those of ASGI.
    """

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
        call: Call,
    ) -> None: ...


class Endpoint(Protocol):
    """Serves `Call`s of one (resource, subresource); the answer of a create is 201."""

    async def __call__(self, call: Call) -> Object: ...


@dataclass(frozen=True, slots=True)
class LogOptions:
    """PodLogOptions (core/v1)."""

    container: str = ""
    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    since_seconds: int | None = None
    since_time: str = ""
    tail_lines: int | None = None
    limit_bytes: int | None = None


class LogSource(Protocol):
    """The kubelet's side of `pods/log`."""

    def open_log(self, pod: Object, options: LogOptions) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Chunks of log; with `follow` until the container ends. Raises ApiError when entered (400, 404)."""
        ...
