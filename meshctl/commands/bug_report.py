"""`meshctl bug-report`."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from manifests.names import API_VERSION, CA_BUNDLE, CA_SECRET, INJECTION_LABEL, SYSTEM_NAMESPACE
from mesh_api.admin import SidecarConfig, SidecarList
from mesh_api.names import PROXY_CONTAINER
from mesh_api.version import VERSION
from meshctl import apply as cluster
from meshctl.admin import ask
from meshctl.checks.lists import INSTALLED
from meshctl.checks.model import Target, run_all
from meshctl.commands.logs import Source, control_sources
from meshctl.context import read_values, with_kube
from meshctl.errors import MeshctlError
from meshctl.kube import Kube
from meshctl.pods import has_sidecar
from meshctl.redact import redact, redact_text
from meshctl.render import structured

Object = dict[str, Any]
File = tuple[str, str]
MAX_BYTES = 64 * 1024 * 1024
MAX_SIDECARS = 50
LOG_LINES = 2000


@click.command("bug-report")
@with_kube
@click.option("--file", "path", type=click.Path(path_type=Path), help="Default: triomesh-report-TIME.tar.gz")
def bug_report(kube: Kube, path: Path | None) -> None:
    """Collect manifests, events, logs, checks and versions; data of Secrets is left out."""
    now = datetime.now(UTC)
    target = path or Path(f"triomesh-report-{now:%Y%m%d-%H%M%S}.tar.gz")
    errors: list[str] = []
    size = 0
    try:
        with (
            open(target, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file,
            tarfile.open(fileobj=file, mode="w:gz") as archive,
        ):
            for name, text in _files(kube, errors):
                data = redact_text(text).encode()
                size += len(data)
                if size > MAX_BYTES:
                    errors.append(f"{name} and what follows: left out, more than {MAX_BYTES} bytes")
                    break
                _add(archive, name, data, now)
            _add(archive, "errors.txt", redact_text("\n".join(errors)).encode(), now)
    except OSError as exc:
        raise MeshctlError(f"{target}: {exc.strerror}") from None
    click.echo(
        f"{target}: {size} bytes of text; data of Secrets, and environments of other containers, left out"
    )
    for error in errors:
        click.echo(f"not in it: {error}", err=True)


def _add(archive: tarfile.TarFile, name: str, data: bytes, now: datetime) -> None:
    info = tarfile.TarInfo(f"triomesh-report/{name}")
    info.size, info.mtime, info.mode = len(data), int(now.timestamp()), 0o600
    archive.addfile(info, io.BytesIO(data))


def _files(kube: Kube, errors: list[str]) -> Iterator[File]:
    """Every file of the report; what cannot be had is noted and does not stop the rest."""
    there = _try(lambda: cluster.existing(kube), "the installation", errors)
    namespace = there.namespace if there else SYSTEM_NAMESPACE
    yield "version.yaml", _yaml(_try(lambda: _versions(kube), "versions", errors))
    for name, read in _reads(kube, namespace):
        found = _try(read, name, errors)
        if found is not None:
            yield f"objects/{name}.yaml", _yaml([redact(obj) for obj in found])
    yield from _sidecars(kube, namespace, errors)
    yield "checks.txt", _try(lambda: _checks(kube, there), "checks", errors) or ""
    yield from _logs(kube, errors)


def _try(read: Callable[[], Any], what: str, errors: list[str]) -> Any:
    try:
        return read()
    except MeshctlError as exc:
        errors.append(f"{what}: {exc}")
        return None


def _yaml(data: Any) -> str:
    return structured(data, "yaml") + "\n"


def _versions(kube: Kube) -> Object:
    return {"client": VERSION, "kubernetes": kube.request("GET", "/version"), "host": kube.host}


def _reads(kube: Kube, namespace: str) -> Iterator[tuple[str, Callable[[], list[Object]]]]:
    """What is read, by name; namespaces with injection are read one by one."""
    yield "installed", lambda: cluster.installed(kube)
    yield "crds", lambda: cluster.installed_crds(kube)
    yield "nodes", lambda: kube.items("v1", "Node")
    yield "namespaces", lambda: kube.items("v1", "Namespace")
    for kind in ("TrafficPolicy", "AccessPolicy", "MeshPolicy"):
        yield kind.lower(), partial(kube.items, API_VERSION, kind)
    yield "ca-secret", lambda: kube.items("v1", "Secret", namespace, fields=f"metadata.name={CA_SECRET}")
    yield "ca-bundles", lambda: kube.items("v1", "ConfigMap", fields=f"metadata.name={CA_BUNDLE}")
    yield "pods-control", lambda: kube.items("v1", "Pod", namespace)
    yield "events-control", lambda: kube.items("v1", "Event", namespace)
    yield "pods-meshed", lambda: [pod for pod in kube.items("v1", "Pod") if has_sidecar(pod)]
    for kind, version in (("Service", "v1"), ("EndpointSlice", "discovery.k8s.io/v1"), ("Event", "v1")):
        yield f"{kind.lower()}s-labelled", partial(_labelled, kube, version, kind)


def _sidecars(kube: Kube, namespace: str, errors: list[str]) -> Iterator[File]:
    """What sidecars have, as they and the control plane say."""
    found = _try(lambda: ask(kube, namespace, "/sidecars", SidecarList), "sidecars", errors)
    if found is None:
        return
    yield "sidecars.yaml", _yaml(msgspec.to_builtins(found))
    if len(found.sidecars) > MAX_SIDECARS:
        left = len(found.sidecars) - MAX_SIDECARS
        errors.append(f"configurations of {left} sidecars: left out, more than {MAX_SIDECARS}")
    for one in found.sidecars[:MAX_SIDECARS]:
        page = f"/sidecars/{one.namespace}/{one.pod}/config"
        config = _try(partial(ask, kube, namespace, page, SidecarConfig), page, errors)
        if config is not None:
            yield f"sidecars/{one.namespace}_{one.pod}.yaml", _yaml(msgspec.to_builtins(config))


def _labelled(kube: Kube, version: str, kind: str) -> list[Object]:
    namespaces = kube.items("v1", "Namespace", labels=f"{INJECTION_LABEL}=enabled")
    return [obj for ns in namespaces for obj in kube.items(version, kind, ns["metadata"]["name"])]


def _checks(kube: Kube, there: cluster.Existing | None) -> str:
    values = read_values(cluster.stored_values(there) if there else {})
    target = Target(kube, values, lambda: datetime.now(UTC))
    lines = []
    for check, result in run_all(INSTALLED, target):
        lines.append(f"{result.outcome.value} {check.id}: {result.detail}")
        lines += [f"  {line}" for line in result.lines]
    return "\n".join(lines) + "\n"


def _log(kube: Kube, source: Source) -> list[str]:
    return list(kube.log_lines(*source, tail=LOG_LINES))


def _logs(kube: Kube, errors: list[str]) -> Iterator[File]:
    sources = _try(lambda: control_sources(kube), "logs of the control plane", errors) or []
    pods = _try(lambda: kube.items("v1", "Pod"), "pods", errors) or []
    meshed = [pod["metadata"] for pod in pods if has_sidecar(pod)]
    if len(meshed) > MAX_SIDECARS:
        errors.append(f"logs of {len(meshed) - MAX_SIDECARS} sidecars: left out, more than {MAX_SIDECARS}")
    sources += [(m["namespace"], m["name"], PROXY_CONTAINER) for m in meshed[:MAX_SIDECARS]]
    for source in sources:
        lines = _try(partial(_log, kube, source), "/".join(source), errors)
        if lines is not None:
            yield f"logs/{'_'.join(source)}.log", "\n".join(lines) + "\n"
