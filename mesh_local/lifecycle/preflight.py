"""What a machine needs to run a local cluster, checked before anything is changed."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Container
from pathlib import Path

from mesh_local.lifecycle import process
from mesh_local.settings import FIRST_PORT, Choices, SettingsError

TOOLS = {
    "iptables-restore": "iptables",
    "ip6tables-restore": "iptables",
    "iptables": "iptables",
    "ip6tables": "iptables",
}


def require_root() -> None:
    """Raises SettingsError for a user who may not make network namespaces."""
    if os.geteuid() != 0:
        raise SettingsError(
            "a local cluster needs root: it makes network namespaces, iptables rules and processes of other"
            " users. Run the same command with sudo"
        )


def require_machine() -> None:
    """Check tools and kernel.

    Raises:
        SettingsError: naming everything that is missing, and what to do.
    """
    problems = [_missing_tools(), _no_namespaces(), _no_overlay(), _private_python()]
    found = [p for p in problems if p]
    if found:
        raise SettingsError("this machine cannot run a local cluster: " + "; ".join(found))


def _missing_tools() -> str:
    missing = sorted(tool for tool in TOOLS if shutil.which(tool, path=process.search_path()) is None)
    if not missing:
        return ""
    packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
    return f"missing {', '.join(missing)} (on Debian: apt-get install {packages})"


def _tried(*argv: str) -> str:
    """What a command says when it fails; '' when it works or is not there."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")


def _no_namespaces() -> str:
    said = _tried("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true")
    return f"namespaces cannot be made ({said}); is this a container without CAP_SYS_ADMIN?" if said else ""


def _no_overlay() -> str:
    with tempfile.TemporaryDirectory(prefix="triomesh-") as place:
        script = (
            'mount -t tmpfs none "$0" && mkdir "$0/u" "$0/w" "$0/m" &&'
            ' mount -t overlay overlay -o "lowerdir=/,upperdir=$0/u,workdir=$0/w" "$0/m"'
        )
        said = _tried("unshare", "--mount", "sh", "-c", script, place)
    return f"overlay file systems cannot be mounted over / ({said})" if said else ""


def _private_python() -> str:
    """Containers run as other users: they need an interpreter that those can execute."""
    python = Path(sys.executable).resolve()
    for directory in python.parents:
        if not directory.stat().st_mode & 0o001:
            return (
                f"the interpreter {python} lies under {directory}, which other users cannot enter; make the"
                " virtual environment with a system-wide python3.11 (/usr/bin/python3.11)"
            )
    return ""


def port_problem(port: int) -> str:
    """Why the API server cannot listen on 127.0.0.1:port, or ''."""
    if not 1 <= port <= 65535:
        return f"{port} is not a port number (1 to 65535)"
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
            trial.listen(1)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return f"port {port} on 127.0.0.1 is taken"
            return f"port {port} on 127.0.0.1 cannot be used: {exc.strerror}"
    return ""


def choose_port(asked: int | None, kept: Choices | None, promised: Container[int] = ()) -> int:
    """The API port: the one asked for, the one the cluster had, or the first that is free.

    Args:
        promised: ports of other clusters, which they take again when they are started.

    Raises:
        SettingsError: the port asked for or kept is taken.
    """
    wanted = asked or (kept.api_port if kept else None)
    if wanted is not None:
        if problem := port_problem(wanted):
            raise SettingsError(f"{problem}; choose another with --api-port")
        return wanted
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        if port not in promised and not port_problem(port):
            return port
    raise SettingsError(f"no free port from {FIRST_PORT} to {FIRST_PORT + 99}; choose one with --api-port")
