"""Who a request is from: authentication, then impersonation."""

from urllib.parse import unquote

from mesh_local.apiserver.core import Core
from mesh_local.apiserver.face.messages import Request
from mesh_local.apiserver.types import Attributes, Authenticator, User
from mesh_local.machinery import errors

_PREFIX = "system:serviceaccount:"
_AUTHENTICATED = "system:authenticated"
_GROUP = "authentication.k8s.io"


async def caller_of(
    core: Core, authenticator: Authenticator, request: Request, certificate: bytes | None
) -> User:
    """The user in whose name a request is served.

    Raises:
        ApiError: 401; 403 where the caller may not impersonate.
    """
    user = await authenticator.authenticate(_bearer(request), certificate)
    return _impersonated(core, request, user)


def _bearer(request: Request) -> str | None:
    """The bearer token (RFC 6750); other schemes count as no credentials, as in Kubernetes."""
    scheme, _, token = request.header("authorization").strip().partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def _impersonated(core: Core, request: Request, user: User) -> User:
    """The user that the Impersonate-* headers name, each of them authorised."""
    name, uid = request.header("impersonate-user"), request.header("impersonate-uid")
    groups = request.values("impersonate-group")
    extra: dict[str, list[str]] = {}
    for header, value in request.headers:
        if header.startswith("impersonate-extra-"):
            # Clients escape what may not stand in the name of a header.
            key = unquote(header.removeprefix("impersonate-extra-")).lower()
            extra.setdefault(key, []).append(value)
    if not name:
        if uid or groups or extra:
            raise errors.bad_request("requested impersonation of groups, uid or extra without a user")
        return user
    account = name.removeprefix(_PREFIX).split(":") if name.startswith(_PREFIX) else []
    if len(account) == 2:
        wanted = [("", "serviceaccounts", "", account[0], account[1])]
    else:
        wanted = [("", "users", "", "", name)]
    wanted += [("", "groups", "", "", group) for group in groups]
    wanted += [(_GROUP, "userextras", key, "", value) for key, values in extra.items() for value in values]
    wanted += [(_GROUP, "uids", "", "", uid)] if uid else []
    for group, resource, subresource, namespace, value in wanted:
        version = "v1" if group else ""
        core.authorize_attributes(
            user, Attributes("impersonate", group, version, resource, subresource, namespace, value)
        )
    if len(account) == 2 and not groups:
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{account[0]}"]
    if name != "system:anonymous" and _AUTHENTICATED not in groups:
        groups = [*groups, _AUTHENTICATED]
    elif name == "system:anonymous" and not groups:
        groups = ["system:unauthenticated"]
    return User(name, uid, tuple(groups), {k: tuple(v) for k, v in extra.items()})
