"""What a running cluster says about itself, over a Unix socket in its run directory (root only)."""

import socket
from collections.abc import Callable

import msgspec
import trio

from mesh_local.settings import Places

_LIMIT = 1 << 20


class Status(msgspec.Struct, frozen=True):
    """The state of a running cluster."""

    ready: bool
    server: str
    ip_family: str
    namespaces: int = 0
    pods: dict[str, int] = {}  # phase -> how many; `Ready` beside them
    detail: str = ""


async def serve(
    places: Places,
    status: Callable[[], Status],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer each connection with one Status as JSON, until cancelled."""
    places.control.unlink(missing_ok=True)
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with listener:
        await listener.bind(str(places.control))
        places.control.chmod(0o600)
        listener.listen(16)
        task_status.started()
        while True:
            connection, _ = await listener.accept()
            with connection, trio.move_on_after(2):
                await trio.SocketStream(connection).send_all(msgspec.json.encode(status()))


def ask(places: Places, timeout_s: float = 5.0) -> Status | None:
    """The Status of a running cluster; None when nothing answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(places.control))
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
                if len(answer) > _LIMIT:
                    return None
            return msgspec.json.decode(answer, type=Status)
        except (OSError, msgspec.DecodeError):
            return None
