"""`up`, `status` and `down`. Each prints what it does; each can be run again after it was interrupted."""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click

from mesh_local.kubelet import trees
from mesh_local.lifecycle import control, leftovers, prefix, preflight, process
from mesh_local.settings import (
    DEFAULT_NAME,
    NAME,
    RUN_ROOT,
    STATE_ROOT,
    Choices,
    IpFamily,
    Places,
    SettingsError,
    choosing,
    promised_ports,
    read_choices,
    write_choices,
)

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0


def up(name: str, api_port: int | None, ip_family: IpFamily | None) -> None:
    """Start the cluster, or go on with one that was stopped or has crashed; print how to use it."""
    preflight.require_root()
    places = Places(name)
    with _locked(places):
        kept = read_choices(places)
        _refuse_changes(places, kept, api_port, ip_family)
        if process.find(places) is not None:
            status = control.ask(places)
            if status is not None and status.ready:
                click.echo(f"cluster {name!r} is already running")
                _print_how_to_use(places)
                return
            raise SettingsError(
                f"cluster {name!r} runs but is not ready; see {places.log}, or start anew:"
                f" meshctl local down{_name_option(name)}"
            )
        preflight.require_machine()
        with choosing():
            port = preflight.choose_port(api_port, kept, promised_ports(places))
            write_choices(places, Choices(port, ip_family or (kept.ip_family if kept else "dual")))
        for directory in (places.run, places.pods, places.network):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)
        _step("installing the code that pods run")
        prefix.install(places.prefix, in_use=any(places.pods.iterdir()))
        _start(places)
        _print_how_to_use(places)


def down(name: str, purge: bool) -> None:
    """Stop the cluster and remove every namespace, process, mount and rule; with `purge` its objects too."""
    preflight.require_root()
    places = Places(name)
    with _locked(places):
        existed = places.state.exists() or places.run.exists()
        runtime = process.find(places)
        if runtime is not None:
            _step("stopping the runtime")
            if not runtime.stop(STOP_LIMIT_S):
                click.echo("  it did not end by itself and was killed")
        removed = leftovers.remove(places, say=_step)
        trees.remove(places.run)
        if purge:
            trees.remove(places.state)
        _remove_empty(RUN_ROOT, RUN_ROOT.parent, STATE_ROOT, STATE_ROOT.parent)
        if not existed and not removed:
            click.echo(f"there is no cluster {name!r}")
        elif purge:
            click.echo(f"cluster {name!r} is gone, its objects too")
        else:
            click.echo(f"cluster {name!r} is stopped; its objects are kept (remove them with --purge)")


def status(name: str | None) -> bool:
    """Print the state of one cluster, or of all. True when each named or found is running and ready."""
    preflight.require_root()
    names = [name] if name else sorted(_known())
    if not names:
        click.echo("there is no local cluster; make one with: meshctl local up")
        return False
    ready = [_print_status(Places(n)) for n in names]
    return all(ready)


def _known() -> set[str]:
    found = {d.name for root in (STATE_ROOT, RUN_ROOT) if root.is_dir() for d in root.iterdir() if d.is_dir()}
    return {name for name in found if NAME.fullmatch(name)}


def _print_status(places: Places) -> bool:
    found = control.ask(places)
    if found is None:
        click.echo(f"{places.name}: {_why_silent(places)}")
        return False
    pods = ", ".join(f"{count} {word}" for word, count in found.pods.items()) or "none"
    detail = f" ({found.detail})" if found.detail else ""
    click.echo(f"{places.name}: {'ready' if found.ready else 'not ready'}{detail}")
    click.echo(f"  API server  {found.server}")
    click.echo(f"  kubeconfig  {places.kubeconfig}")
    click.echo(f"  addresses   {found.ip_family}")
    click.echo(f"  pods        {pods}")
    return found.ready


def _why_silent(places: Places) -> str:
    again = f"meshctl local up{_name_option(places.name)}"
    runtime = process.find(places)
    if runtime is not None:
        return f"the runtime (process {runtime.pid}) does not answer; see {places.log}"
    if places.run.exists():
        return f"the runtime has crashed; go on with: {again}"
    if places.state.exists():
        return f"stopped; start it with: {again}"
    return "there is no such cluster"


def _refuse_changes(
    places: Places, kept: Choices | None, api_port: int | None, ip_family: str | None
) -> None:
    if kept is None:
        return
    running = process.find(places) is not None
    if running and api_port not in (None, kept.api_port):
        raise SettingsError(
            f"cluster {places.name!r} is running on port {kept.api_port}, not {api_port}; stop it first:"
            f" meshctl local down{_name_option(places.name)}"
        )
    if ip_family not in (None, kept.ip_family):
        raise SettingsError(
            f"cluster {places.name!r} was made with --ip-family {kept.ip_family}, which cannot be changed;"
            f" remove it first: meshctl local down --purge{_name_option(places.name)}"
        )


def _start(places: Places) -> None:
    """Start the runtime and show what it reports until it is ready.

    Raises:
        SettingsError: it ended or did not become ready; what it said is in the message.
    """
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as progress:
        try:
            child = process.start(places, writing)
        finally:
            os.close(writing)
        try:
            last = _show_progress(progress, places)
        except BaseException:  # Ctrl-C among them: nothing goes on behind the user's back
            child.kill()
            child.wait()
            raise
    if last == "ready":
        return
    code = child.wait()
    if last.startswith("error: "):
        raise SettingsError(last.removeprefix("error: "))
    raise SettingsError(f"the runtime ended with code {code} after {last!r}; see {places.log}")


def _show_progress(progress: TextIO, places: Places) -> str:
    """The runtime's last line: `ready`, or what it did or said when it ended. Raises SettingsError."""
    last = ""
    while select.select([progress], [], [], START_LIMIT_S)[0]:
        line = progress.readline()
        if not line:
            return last
        last = line.strip()
        if last == "ready" or last.startswith("error: "):
            return last
        _step(last)
    raise SettingsError(f"nothing happened for {START_LIMIT_S:.0f} s after {last!r}; see {places.log}")


def _print_how_to_use(places: Places) -> None:
    click.echo(f"kubeconfig: {places.kubeconfig}")
    click.echo("next:")
    click.echo(f"  export KUBECONFIG={places.kubeconfig}")
    click.echo("  kubectl get pods --all-namespaces")


def _name_option(name: str) -> str:
    return "" if name == DEFAULT_NAME else f" --name {name}"


def _step(text: str) -> None:
    click.echo(f"  {text}")


@contextmanager
def _locked(places: Places) -> Iterator[None]:
    """Hold the cluster's lock: an abstract socket, which is gone with the process and leaves no file.

    Raises:
        SettingsError: another command works on this cluster.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(f"\0triomesh/local/{places.name}")
        except OSError:
            raise SettingsError(
                f"another command is working on cluster {places.name!r}; wait until it is done"
            ) from None
        yield


def _remove_empty(*directories: Path) -> None:
    for directory in directories:
        with suppress(OSError):  # other clusters are in it, or it was not there
            directory.rmdir()
