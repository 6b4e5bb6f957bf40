"""Who is calling: a client certificate, a ServiceAccount token, or nobody."""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

from mesh_local.apiserver.auth.pki import fingerprint
from mesh_local.apiserver.auth.tokens import EXTRA, TokenAuthority, TokenError, Verified
from mesh_local.apiserver.types import ANONYMOUS, User
from mesh_local.machinery.errors import unauthorized

CACHE_LIFE = timedelta(seconds=10)
CACHE_SIZE = 1024


class ClusterAuthenticator:
    """The `Authenticator` of the cluster.

    A valid token is remembered for up to ten seconds, so that long its Pod may be gone already, as in
    Kubernetes.
    """

    def __init__(self, tokens: TokenAuthority) -> None:
        self.tokens = tokens
        self._cache: dict[tuple[bytes, tuple[str, ...]], tuple[datetime, Verified]] = {}

    async def authenticate(self, token: str | None, certificate: bytes | None) -> User:
        """See `Authenticator`. A certificate goes before a token."""
        if certificate is not None:
            return certificate_user(certificate)
        if token is None:
            return ANONYMOUS
        try:
            return self.review(token, ()).user
        except TokenError:
            raise unauthorized() from None

    def review(self, token: str, audiences: Sequence[str]) -> Verified:
        """What a token is worth for these audiences; none: the API server's own. Raises TokenError."""
        wanted = tuple(audiences) or (self.tokens.issuer,)
        key = (hashlib.sha256(token.encode()).digest(), wanted)
        now = self.tokens.now()
        found = self._cache.get(key)
        if found and now < found[0]:
            return found[1]
        self._cache.pop(key, None)
        verified = self.tokens.verify(token, wanted)
        if len(self._cache) >= CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = (min(now + CACHE_LIFE, verified.expires), verified)
        return verified


def certificate_user(der: bytes) -> User:
    """The user that a client certificate names: CN, with the groups in O. TLS has verified it.

    Raises:
        ApiError: 401, for a certificate without a common name.
    """
    try:
        subject = x509.load_der_x509_certificate(der).subject
    except ValueError:
        raise unauthorized() from None
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not names[0].value:
        raise unauthorized()
    groups = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    return User(
        str(names[0].value),
        groups=(*groups, "system:authenticated"),
        extra={f"{EXTRA}credential-id": (f"X509SHA256={fingerprint(der)}",)},
    )
