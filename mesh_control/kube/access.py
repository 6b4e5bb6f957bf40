"""Where the API server is and how it is convinced of who we are; read by the official client's loaders.

Nothing else of that client is used: it is synchronous, and its typed models cost memory in every replica.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from kubernetes.client import Configuration
from kubernetes.config import list_kube_config_contexts, load_kube_config
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.incluster_config import (
    SERVICE_CERT_FILENAME,
    SERVICE_TOKEN_FILENAME,
    InClusterConfigLoader,
)
from yaml import YAMLError


class AccessError(Exception):
    """No usable configuration; the message says what was expected and where."""


@dataclass(frozen=True)
class Access:
    """One API server and one way in. Methods may read files: call them from a thread."""

    server: str
    """https://HOST:PORT, with a path prefix where a proxy has one."""
    context: ssl.SSLContext = field(repr=False)
    server_name: str = ""
    """Name in the server's certificate, where it is not the host's."""
    namespace: str = "default"
    authorization: Callable[[bool], str] = field(repr=False, default=lambda fresh: "")
    """Value of the Authorization header, or ''; with True the token's source is read again."""


def _context(configuration: Configuration) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not configuration.verify_ssl:  # the user's kubeconfig says insecure-skip-tls-verify
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (OSError, ValueError) as exc:
        raise AccessError(f"certificates of the API server's access: {exc}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _access(configuration: Configuration, namespace: str, reload: Callable[[Configuration], None]) -> Access:
    server = str(configuration.host or "").rstrip("/")
    if urlsplit(server).scheme != "https" or not urlsplit(server).hostname:
        raise AccessError(f"API server: expected an https:// address, got {server!r}")
    if configuration.proxy:
        raise AccessError("kubeconfig: expected no proxy-url; proxies are not supported")
    lock = threading.Lock()

    def authorization(fresh: bool) -> str:
        try:
            with lock:  # the loaders are not made for several threads
                if fresh:
                    reload(configuration)
                value = str(configuration.get_api_key_with_prefix("BearerToken") or "")
        except (ConfigException, OSError, ValueError) as exc:
            raise AccessError(f"token of the API server's access: {exc}") from None
        scheme, _, token = value.partition(" ")
        return f"{scheme} {token.strip()}" if token else ""

    return Access(
        server, _context(configuration), str(configuration.tls_server_name or ""), namespace, authorization
    )


def in_cluster(
    token: str = SERVICE_TOKEN_FILENAME,
    ca: str = SERVICE_CERT_FILENAME,
    environ: Mapping[str, str] = os.environ,
) -> Access:
    """Access with the pod's own ServiceAccount; the token file is read again as it is rotated.

    Raises:
        AccessError: this is no pod, or its token is not mounted.
    """
    configuration = Configuration()
    loader = InClusterConfigLoader(token_filename=token, cert_filename=ca, environ=environ)  # type: ignore[no-untyped-call]
    try:
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
        namespace = Path(token).with_name("namespace")
        own = namespace.read_text("ascii").strip() if namespace.exists() else ""
    except (ConfigException, OSError, ValueError) as exc:
        raise AccessError(f"in-cluster configuration: {exc}") from None
    return _access(configuration, own or "default", loader.load_and_set)


def from_kubeconfig(path: str | None = None, context: str | None = None) -> Access:
    """Access as kubectl would have it: `path`, or $KUBECONFIG, or ~/.kube/config.

    Raises:
        AccessError: no such file or context, or something in it is not usable.
    """

    def load(configuration: Configuration) -> None:
        load_kube_config(path, context, configuration, persist_config=False)  # type: ignore[no-untyped-call]

    configuration = Configuration()
    try:
        load(configuration)
        namespace = _context_namespace(path, context)
    except (ConfigException, YAMLError, OSError, ValueError, TypeError, KeyError) as exc:
        raise AccessError(f"kubeconfig: {exc}") from None
    return _access(configuration, namespace, load)


def _context_namespace(path: str | None, context: str | None) -> str:
    contexts, active = list_kube_config_contexts(path)  # type: ignore[no-untyped-call]
    chosen = next((one for one in contexts if one["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def default_access(kubeconfig: str | None = None, context: str | None = None) -> Access:
    """A named kubeconfig, else the pod's own account, else the user's kubeconfig. Raises AccessError."""
    if not kubeconfig and not context and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster()
    return from_kubeconfig(kubeconfig, context)
