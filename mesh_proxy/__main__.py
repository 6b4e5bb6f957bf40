"""The sidecar's entry point: `python -m mesh_proxy`, or `triomesh-proxy`."""

from __future__ import annotations

import os
import sys

import trio

from mesh_proxy.app import StartError, raise_descriptor_limit, run
from mesh_proxy.settings import Settings, SettingsError, from_environment
from mesh_proxy.wire.http2.engines import EngineError

_USAGE = """\
triomesh-proxy: the sidecar of one pod. It takes no arguments; its settings are environment variables.
With a control plane:
  TRIOMESH_CONTROL_ADDRESS  HOST:PORT of its discovery stream
  TRIOMESH_CA_ADDRESS       HOST:PORT of its CA
  TRIOMESH_CONTROL_IDENTITY SPIFFE id that it must prove
  TRIOMESH_POD_NAME, TRIOMESH_POD_NAMESPACE
  TRIOMESH_TRUST_BUNDLE     first trust, PEM; the file TRIOMESH_BUNDLE_FILE is preferred
                            (default /run/triomesh/bundle/bundle.pem)
  TRIOMESH_TOKEN_FILE       ServiceAccount token for the CA; default /run/secrets/triomesh/token
By hand:
  TRIOMESH_CONFIG_FILE      configuration to read, and to read again when it changes
  TRIOMESH_CA_SOCKET        Unix socket of the CA
Both:
  TRIOMESH_TRUST_DOMAIN     default cluster.local
  TRIOMESH_POD_IPS          addresses of this pod, separated by commas; default: ask the kernel
  TRIOMESH_DRAIN_SECONDS    how long SIGTERM waits for connections to end; default 30
  TRIOMESH_LIMIT_...        connections, bytes, times: see docs/operations.md
  TRIOMESH_HTTP2_ENGINE     auto (default), nghttp2 or hyper
  TRIOMESH_HANDSHAKE_WORKERS  threads for TLS handshakes; default 2
  TRIOMESH_LOG_LEVEL        debug, info (default), warning or error
It must run as uid 1337: the iptables rules let only that user's traffic pass.
"""


def main() -> None:
    """Run a sidecar; exit code 2 with one line on stderr if it cannot start."""
    if len(sys.argv) > 1:
        ok = sys.argv[1] in {"-h", "--help"}
        print(_USAGE, end="", file=sys.stdout if ok else sys.stderr)
        raise SystemExit(0 if ok else 2)
    try:
        settings = from_environment(os.environ)
        _check_uid(settings)
        raise_descriptor_limit()
        trio.run(run, settings)
    except (SettingsError, StartError, EngineError) as exc:
        print(f"triomesh-proxy: {exc}", file=sys.stderr)
        raise SystemExit(2) from None


def _check_uid(settings: Settings) -> None:
    uid = os.geteuid()
    if settings.uid not in {-1, uid}:
        raise StartError(
            f"expected to run as uid {settings.uid}, this is uid {uid}: "
            "the pod's rules would send the sidecar's own traffic back to it"
        )


if __name__ == "__main__":
    main()
