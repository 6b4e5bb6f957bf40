"""The shop's front: one page, made of a review and a line from the notice board."""

import http.client
import json
import socket

from .serve import Answer, get, serve


def notice() -> str:
    """A line of the notice board, which speaks first."""
    with socket.create_connection(("notices", 7000), timeout=5) as board, board.makefile("rwb") as lines:  # noqa: TID251
        greeting = lines.readline().decode().strip()
        lines.write(b"READ\n")
        lines.flush()
        return f"{greeting}: {lines.readline().decode().strip()}"


def page(path: str, query: dict[str, str]) -> Answer:
    """`/books/N`: everything about a book; `/healthz`."""
    if path == "/healthz":
        return 200, "ok"
    try:
        status, error, body = get("reviews", 9080, f"/reviews{path}")
        board = notice() if query.get("notice") else ""
    except (OSError, http.client.HTTPException) as exc:
        return 502, {"problem": f"{type(exc).__name__}: {exc}"}
    if status != 200:
        return status, {"problem": f"reviews answered {status}", "error": error}
    return 200, {"book": path, "review": json.loads(body), "notice": board}


if __name__ == "__main__":
    serve(8080, page)
