"""What a request asks for beyond its key. It never gets it; asking for another name is worth a refusal."""

from __future__ import annotations

from cryptography import x509

from certs.authority import MAX_CSR_BYTES, AuthorityError
from certs.bundle import UNREADABLE
from certs.identity import SpiffeId


class ForeignName(AuthorityError):
    """A request that names somebody else."""


def check_names(csr_pem: bytes, identity: SpiffeId) -> None:
    """Refuse a CSR (RFC 2986) that asks for any subject alternative name but `identity`; none is usual.

    A CSR that cannot be read passes here: signing refuses it and says why. Raises ForeignName.
    """
    if len(csr_pem) > MAX_CSR_BYTES:
        return
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
    except ValueError:
        return
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    except UNREADABLE as exc:
        raise ForeignName(f"CSR: expected readable extensions: {exc}") from None
    for name in names:
        if not (isinstance(name, x509.UniformResourceIdentifier) and name.value == str(identity)):
            asked = str(name.value)[:200]
            raise ForeignName(
                f"CSR: expected no name in it, or {identity}, which is the caller's; got {asked}"
            )
