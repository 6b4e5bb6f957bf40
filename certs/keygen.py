"""Makes a key and a certificate request in a process of its own, which ends at once.

The `cryptography` package is a large part of what a sidecar could weigh; this way the long-lived process
never loads it. The private key goes into a memory file that the parent opened, so no disk sees it.

Run by path or as `python -m certs.keygen --key-fd N`: PKCS #8 PEM to descriptor N, PKCS #10 PEM to stdout.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def make() -> tuple[bytes, bytes]:
    """A new ECDSA P-256 key and a request for it without any name: (PKCS #8 PEM, PKCS #10 PEM; RFC 2986)."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        csr.public_bytes(Encoding.PEM),
    )


def main() -> int:
    """Exit code 0, or 2 for bad arguments, or 1 when a write failed (message on stderr)."""
    parser = argparse.ArgumentParser(prog="certs.keygen", description="make a private key and a CSR")
    parser.add_argument("--key-fd", type=int, required=True, help="open descriptor that receives the key")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would put the key on disk
    key, csr = make()
    try:
        while key:
            key = key[os.write(args.key_fd, key) :]
        sys.stdout.buffer.write(csr)
        sys.stdout.buffer.flush()
    except OSError as exc:
        print(f"keygen: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
