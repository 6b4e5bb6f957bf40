"""What a local cluster is called, where it keeps its things, and what was chosen when it was made."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

STATE_ROOT = Path("/var/lib/triomesh/local")
RUN_ROOT = Path("/run/triomesh/local")
DEFAULT_NAME = "local"
FIRST_PORT = 6443
# The name is part of the names of network namespaces.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")
STATE_VERSION = 1

IpFamily = Literal["ipv4", "ipv6", "dual"]


class SettingsError(Exception):
    """A choice that cannot be used: what, and what was expected."""


class Choices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept in `cluster.json` for as long as the cluster's state exists."""

    api_port: int
    ip_family: IpFamily
    version: int = STATE_VERSION


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one cluster. `state` survives `down`; `run` does not."""

    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise SettingsError(
                f"the cluster name {self.name!r} is not valid: expected 1 to 20 lower-case letters, digits"
                " or '-', beginning and ending with a letter or digit"
            )

    @property
    def state(self) -> Path:
        return STATE_ROOT / self.name

    @property
    def run(self) -> Path:
        return RUN_ROOT / self.name

    @property
    def choices(self) -> Path:
        return self.state / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def database(self) -> Path:
        return self.state / "objects.db"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def prefix(self) -> Path:
        """The project's own code, readable by every user; seen by pods as /opt/triomesh."""
        return self.state / "prefix"

    @property
    def log(self) -> Path:
        return self.state / "runtime.log"

    @property
    def network(self) -> Path:
        return self.run / "network"

    @property
    def pods(self) -> Path:
        return self.run / "pods"

    @property
    def pid_file(self) -> Path:
        return self.run / "runtime.pid"

    @property
    def control(self) -> Path:
        """The Unix socket on which the runtime answers `status`."""
        return self.run / "control.sock"


def read_choices(places: Places) -> Choices | None:
    """What was chosen when the cluster was made; None for a cluster that does not exist.

    Raises:
        SettingsError: the file cannot be read, or is of another version.
    """
    try:
        raw = places.choices.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SettingsError(f"cannot read {places.choices}: {exc.strerror}") from exc
    try:
        found = msgspec.json.decode(raw, type=Choices)
    except msgspec.DecodeError as exc:
        raise SettingsError(
            f"{places.choices} is not what this version writes ({exc}); remove the cluster with"
            f" `meshctl local down --purge --name {places.name}`"
        ) from exc
    if found.version != STATE_VERSION:
        raise SettingsError(
            f"the state of cluster {places.name!r} is of version {found.version}, this program reads"
            f" {STATE_VERSION}; remove it with `meshctl local down --purge --name {places.name}`"
        )
    return found


def write_choices(places: Places, choices: Choices) -> None:
    # What is in it is root's alone, Secrets in the database among it; containers see `prefix` by a mount.
    places.state.mkdir(parents=True, exist_ok=True)
    places.state.chmod(0o700)
    new = places.choices.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(choices) + b"\n")
    new.replace(places.choices)


@contextmanager
def choosing() -> Iterator[None]:
    """Keep other `up`s from choosing at the same time, so that no two clusters choose one port."""
    STATE_ROOT.mkdir(parents=True, exist_ok=True)
    directory = os.open(STATE_ROOT, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def promised_ports(places: Places) -> set[int]:
    """The API ports of all other clusters, running or not."""
    found = set()
    for directory in STATE_ROOT.iterdir():
        try:
            other = read_choices(Places(directory.name))
        except SettingsError:  # not a cluster, or one that cannot be started
            continue
        if other is not None and directory.name != places.name:
            found.add(other.api_port)
    return found
