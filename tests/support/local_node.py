"""Local clusters' networks in real namespaces, greeters inside pods, and what must not stay behind."""

import os
import re
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio

from mesh_local.machinery.objects import Object
from mesh_local.network import namespace
from mesh_local.network.addressing import Families
from mesh_local.network.namespace import NamespaceDialer, open_listener
from mesh_local.network.node import NetworkOptions, NodeNetwork, remains
from mesh_local.network.service_proxy import ServiceProxy
from mesh_local.network.types import Attachment, Dialer
from tests.support.local_net import Objects

_OURS = re.compile(r"\bv(oid[01]|[0-9a-f]{8})[@: ]|^-A.* TM-|10\.244\.|fd10:| /run/netns ")

NAME = f"t{os.getpid()}"
OTHER = f"{NAME}b"


def new_uid() -> str:
    return str(uuid.uuid4())


def machine() -> set[str]:
    """Everything that a cluster could leave behind: namespaces, links, routes, rules, mounts."""
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    commands = (["ip", "-o", "link"], ["ip", "rule"], ["ip", "route"], ["ip", "-6", "route"])
    lines = [line for command in commands for line in run(command).stdout.splitlines()]
    for save in ("iptables-save", "ip6tables-save"):
        lines += [line for line in run([save]).stdout.splitlines() if line.startswith("-A")]
    mounts = [line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {*lines, *mounts, *namespace.names()}


@contextmanager
def nothing_stays() -> Iterator[None]:
    """Fail if something of a cluster is left at the end, and remove it."""
    before = machine()
    yield
    # Others may be at work on this machine: what counts is what has our names or form.
    left = {line for line in machine() - before if NAME in line or _OURS.search(line)}
    for name in (NAME, OTHER):
        for netns in remains(name):
            namespace.delete(netns)
    assert not left


@asynccontextmanager
async def cluster(
    directory: Path, families: Families = "dual", name: str = NAME
) -> AsyncIterator[NodeNetwork]:
    network = NodeNetwork(NetworkOptions(name, directory, families))
    try:
        with trio.fail_after(50):
            await network.up()
            yield network
    finally:
        with trio.CancelScope(shield=True):
            await network.down()


async def _greet(name: str, stream: trio.SocketStream) -> None:
    async with stream:
        await stream.send_all(f"{name} {stream.socket.getpeername()[0]}".encode())


@asynccontextmanager
async def greeters(port: int, **pods: Attachment) -> AsyncIterator[None]:
    """On every address of every pod, somebody who tells its name and whom it sees."""
    async with trio.open_nursery() as nursery:
        for name, pod in pods.items():
            listeners = [await open_listener(pod.netns, ip, port) for ip in pod.ips]
            nursery.start_soon(partial(trio.serve_listeners, partial(_greet, name), listeners))
        yield
        nursery.cancel_scope.cancel()


async def hear(netns: str, host: str, port: int) -> str:
    """What a greeter says to a client in `netns`."""
    return await hear_by(NamespaceDialer(netns), host, port)


async def hear_by(dialer: Dialer, host: str, port: int) -> str:
    async with await dialer.dial(host, port) as stream:
        return b"".join([piece async for piece in stream]).decode()


async def failure(netns: str, host: str, port: int) -> int:
    """The error number with which a connection attempt ends; 0 if it succeeds."""
    try:
        await hear(netns, host, port)
    except OSError as error:
        return error.errno or -1
    return 0


async def apply(network: NodeNetwork, *services: Object, slices: list[Object] | None = None) -> None:
    """Put these Services into force."""
    await ServiceProxy(network, Objects(), Objects()).apply(services, slices or [])
