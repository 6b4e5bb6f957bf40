"""`meshctl proxy-status` and `meshctl proxy-config`: what sidecars have, by way of the control plane."""

import sys
from typing import Any

import click
import msgspec

from mesh_api.admin import SidecarConfig, SidecarList, SidecarLog, SidecarState, SyncState
from mesh_api.sidecar import TlsMode
from meshctl import routes_view
from meshctl.admin import ask, home
from meshctl.context import with_kube
from meshctl.kube import Kube
from meshctl.render import output_option, structured, table
from meshctl.routes_view import named

SECTIONS = ("routes", "endpoints", "listeners", "certs", "log", "http2", "all")
_FIELDS = {
    "routes": ("destinations",),
    "endpoints": ("destinations", "pods"),
    "listeners": ("listeners", "inbound"),
    "certs": ("certificates",),
    "log": ("log",),
    "http2": ("http2",),
}


@click.command("proxy-status")
@with_kube
@output_option
@click.option("-n", "--namespace", help="Only this one.")
def proxy_status(kube: Kube, output: str, namespace: str | None) -> None:
    """List sidecars and whether they are in sync; exit code 1 where one is not."""
    query = {"namespace": namespace} if namespace else {}
    found = ask(kube, home(kube), "/sidecars", SidecarList, query=query)
    if output == "table":
        headings = ("NAMESPACE", "POD", "STATE", "KEYS", "CONNECTED", "VERSION", "HTTP/2", "REPLICA", "ERROR")
        click.echo(table(headings, [_status_row(each) for each in found.sidecars]))
        if found.answered < found.replicas:
            click.echo(
                f"only {found.answered} of {found.replicas} replicas of the control plane answered", err=True
            )
    else:
        click.echo(structured(msgspec.to_builtins(found), output))
    if any(each.state is not SyncState.SYNCED for each in found.sidecars) or found.answered < found.replicas:
        sys.exit(1)


def _status_row(each: SidecarState) -> tuple[object, ...]:
    connected = f"{each.connected_s:.0f}s"
    state = each.state.value
    return (
        each.namespace,
        each.pod,
        state,
        each.keys,
        connected,
        each.version,
        each.http2 or "-",
        each.replica,
        each.error or "-",
    )


@click.command("proxy-config")
@with_kube
@output_option
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option(
    "--level", type=click.Choice(("debug", "info", "warning", "error")), help="With log: set the log level."
)
@click.argument("pod")
@click.argument("section", type=click.Choice(SECTIONS), default="all")
def proxy_config(kube: Kube, output: str, namespace: str, level: str | None, pod: str, section: str) -> None:
    """Show what a sidecar has in force; POD is NAME or NAMESPACE/NAME."""
    if level and section != "log":
        raise click.UsageError("--level goes with log")
    namespace, _, name = pod.rpartition("/") if "/" in pod else (namespace, "", pod)
    page = f"/sidecars/{namespace}/{name}"
    if level:
        log = ask(kube, home(kube), f"{page}/log", SidecarLog, method="PUT", query={"level": level})
        click.echo(f"log level of {namespace}/{name}: {log.level}")
        return
    found = ask(kube, home(kube), f"{page}/config", SidecarConfig)
    if output != "table":
        click.echo(structured(_chosen(found, section), output))
        return
    shown = [s for s in SECTIONS if s != "all"] if section == "all" else [section]
    click.echo("\n\n".join(_TABLES[each](found) for each in shown))


def _chosen(found: SidecarConfig, section: str) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(found)
    if section == "all":
        return plain
    return {key: plain[key] for key in ("namespace", "pod", *_FIELDS[section]) if key in plain}


def _routes(found: SidecarConfig) -> str:
    return routes_view.routes(found.destinations)


def _endpoints(found: SidecarConfig) -> str:
    rows = [
        (
            named(each),
            f"{e.address} {e.port}",
            "mTLS" if e.tls is TlsMode.MESH else "plain",
            e.identity or "-",
        )
        for each in found.destinations
        for e in each.endpoints
    ]
    rows += [
        (f"pod {p.namespace}/{p.name}", ", ".join(p.addresses), p.tls.value, p.identity or "-")
        for p in found.pods
    ]
    return table(("DESTINATION", "ENDPOINT", "TLS", "IDENTITY"), rows)


def _listeners(found: SidecarConfig) -> str:
    rows: list[tuple[object, ...]] = [(e.purpose, e.address, e.port, "-") for e in found.listeners]
    rows += [("inbound mTLS", "*", "*", found.inbound.mtls.value)]
    rows += [("inbound mTLS", "*", port, mode.value) for port, mode in found.inbound.port_mtls.items()]
    return table(("PURPOSE", "ADDRESS", "PORT", "MODE"), rows)


def _certs(found: SidecarConfig) -> str:
    rows = [(c.role, c.subject, c.serial, c.not_before, c.not_after) for c in found.certificates]
    return table(("ROLE", "SUBJECT", "SERIAL", "NOT BEFORE", "NOT AFTER"), rows)


def _log(found: SidecarConfig) -> str:
    return table(
        ("LOG LEVEL", "ACCESS LOG"), [(found.log.level, "all" if found.log.access_log else "errors")]
    )


def _http2(found: SidecarConfig) -> str:
    return table(("HTTP/2 ENGINE",), [(found.http2 or "-",)])


_TABLES = {
    "routes": _routes,
    "endpoints": _endpoints,
    "listeners": _listeners,
    "certs": _certs,
    "log": _log,
    "http2": _http2,
}
