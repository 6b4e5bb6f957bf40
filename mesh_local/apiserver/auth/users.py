"""Callers as the API shows them."""

from mesh_local.apiserver.types import User
from mesh_local.machinery.objects import Object


def user_info(user: User) -> Object:
    """The UserInfo of authentication.k8s.io/v1; what is empty is left out."""
    info: Object = {"username": user.name}
    if user.uid:
        info["uid"] = user.uid
    if user.groups:
        info["groups"] = list(user.groups)
    if user.extra:
        info["extra"] = {key: list(values) for key, values in sorted(user.extra.items())}
    return info
