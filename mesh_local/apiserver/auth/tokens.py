"""ServiceAccount tokens: JWTs bound to objects that must still exist (KEP-1205, KEP-4193)."""

import base64
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_local.apiserver.types import Reader, User
from mesh_local.machinery.objects import Object, dig, meta, name_of, namespace_of, new_uid, parse_time, uid_of

ISSUER = "https://kubernetes.default.svc.cluster.local"
ALGORITHM = "ES256"
MAX_TOKEN_BYTES = 16 * 1024
EXTRA = "authentication.kubernetes.io/"
# How long the token of an object outlives its deletionTimestamp (go-jose's leeway).
DELETED_LEEWAY = timedelta(seconds=60)


class TokenError(Exception):
    """A token is not valid; the text is what TokenReview reports ('' where it is not one of ours)."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The object whose life bounds a token: `kind` is pod, secret or node.

    Args:
        node: name and uid of the node of a bound pod, for the claims only; the uid may be ''.
    """

    kind: str
    name: str
    uid: str
    node: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """A valid token: who it names, for which of the wanted audiences, and until when."""

    user: User
    audiences: tuple[str, ...]
    expires: datetime


def quoted(values: Sequence[str]) -> str:
    """Go's %q of a slice of strings."""
    return "[" + " ".join(msgspec.json.encode(v).decode() for v in values) + "]"


class TokenAuthority:
    """Issues and verifies the ServiceAccount tokens of one cluster.

    Args:
        now: the present moment.
        issuer: the `iss` claim, also the API server's own audience.
    """

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        reader: Reader,
        now: Callable[[], datetime],
        rng: random.Random,
        issuer: str = ISSUER,
    ) -> None:
        self.issuer = issuer
        self.now = now
        self._key = key
        self._public = key.public_key()
        self._reader = reader
        self._rng = rng
        digest = hashes.Hash(hashes.SHA256())
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        digest.update(self._public.public_bytes(serialization.Encoding.DER, form))
        self._key_id = base64.urlsafe_b64encode(digest.finalize()).rstrip(b"=").decode()

    def issue(
        self, account: Object, audiences: Sequence[str], seconds: int, bound: Bound | None
    ) -> tuple[str, datetime]:
        """A token for a ServiceAccount, and when it expires."""
        issued = self.now().replace(microsecond=0)
        expires = issued + timedelta(seconds=seconds)
        namespace, name = namespace_of(account), name_of(account)
        private: Object = {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid_of(account)}}
        if bound:
            private[bound.kind] = {"name": bound.name, "uid": bound.uid}
            if bound.node:
                node_name, node_uid = bound.node
                private["node"] = {"name": node_name} | ({"uid": node_uid} if node_uid else {})
        claims = {
            "aud": list(audiences),
            "exp": int(expires.timestamp()),
            "iat": int(issued.timestamp()),
            "iss": self.issuer,
            "jti": new_uid(self._rng),
            "kubernetes.io": private,
            "nbf": int(issued.timestamp()),
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        return jwt.encode(claims, self._key, ALGORITHM, headers={"kid": self._key_id}), expires

    def verify(self, token: str, audiences: Sequence[str]) -> Verified:
        """Check signature, time, audience and that everything the token is bound to still exists.

        Args:
            audiences: at least one of them must be the token's.

        Raises:
            TokenError: with Kubernetes' text.
        """
        claims = self._claims(token)
        now = self.now().timestamp()
        if now >= _number(claims, "exp"):
            raise TokenError("service account token has expired")
        if now < _number(claims, "nbf"):
            raise TokenError("service account token is not valid yet")
        given = claims.get("aud")
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not all(isinstance(a, str) for a in given):
            raise TokenError("service account token claims could not be validated")
        shared = tuple(a for a in audiences if a in given)
        if not shared:
            text = f"token audiences {quoted(given)} is invalid for the target audiences {quoted(audiences)}"
            raise TokenError(text)
        user = self._user(claims)
        expires = datetime.fromtimestamp(_number(claims, "exp"), tz=self.now().tzinfo)
        return Verified(user, shared, expires)

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenError("")
        try:
            unverified = jwt.decode(token, options={"verify_signature": False})
        except jwt.PyJWTError:
            raise TokenError("") from None
        if unverified.get("iss") != self.issuer:
            raise TokenError("")
        try:
            # Times and audiences are checked by the caller, on the cluster's clock.
            options: Any = {
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_aud": False,
            }
            return jwt.decode(
                token, self._public, algorithms=[ALGORITHM], issuer=self.issuer, options=options
            )
        except jwt.PyJWTError:
            raise TokenError("go-jose/go-jose: error in cryptographic primitive") from None

    def _user(self, claims: Mapping[str, Any]) -> User:
        private = claims.get("kubernetes.io")
        namespace, name = _text(private, "namespace"), _text(private, "serviceaccount", "name")
        uid = _text(private, "serviceaccount", "uid")
        if (
            not (namespace and name and uid)
            or claims.get("sub") != f"system:serviceaccount:{namespace}:{name}"
        ):
            raise TokenError("service account token claims could not be validated")
        account = self._reader.get("serviceaccounts", name, namespace)
        if account is None:
            raise TokenError(f'serviceaccounts "{name}" not found')
        if self._gone(account):
            raise TokenError(f"service account {namespace}/{name} has been deleted")
        if uid_of(account) != uid:
            raise TokenError(f"service account UID ({uid_of(account)}) does not match claim ({uid})")
        extra: dict[str, tuple[str, ...]] = {}
        if jti := claims.get("jti"):
            extra[f"{EXTRA}credential-id"] = (f"JTI={jti}",)
        self._check_bound(private, namespace, extra)
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        return User(str(claims["sub"]), uid, groups, extra)

    def _check_bound(self, private: Any, namespace: str, extra: dict[str, tuple[str, ...]]) -> None:
        pod, secret, node = (dig(private, kind) for kind in ("pod", "secret", "node"))
        if secret is not None:
            self._still_there("secrets", secret, namespace)
        if pod is not None:
            self._still_there("pods", pod, namespace)
        elif node is not None:
            self._still_there("nodes", node, "")
        if node is not None:
            extra[f"{EXTRA}node-name"] = (_text(node, "name"),)
            if _text(node, "uid"):
                extra[f"{EXTRA}node-uid"] = (_text(node, "uid"),)
        if pod is not None:
            extra[f"{EXTRA}pod-name"] = (_text(pod, "name"),)
            extra[f"{EXTRA}pod-uid"] = (_text(pod, "uid"),)

    def _still_there(self, resource: str, ref: Any, namespace: str) -> None:
        found = self._reader.get(resource, _text(ref, "name"), namespace)
        if found is None or self._gone(found) or uid_of(found) != _text(ref, "uid"):
            raise TokenError("service account token has been invalidated")

    def _gone(self, obj: Object) -> bool:
        deleted = str(meta(obj).get("deletionTimestamp") or "")
        return deleted != "" and parse_time(deleted) < self.now() - DELETED_LEEWAY


def _text(value: Any, *path: str) -> str:
    found = dig(value, *path, default="")
    return found if isinstance(found, str) else ""


def _number(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError("service account token claims could not be validated")
    return value
