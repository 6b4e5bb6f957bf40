"""Reviews of books, with stars from `ratings` from version v2 on.

`/fault?percent=N` makes this pod fail that share of its answers; `/slow/...` answers after a second.
"""

import http.client
import json
import os
import random
import threading

from .serve import Answer, get, serve

VERSION = os.environ["VERSION"]
chance = random.Random(os.getpid())
failing = 0.0


def page(path: str, query: dict[str, str]) -> Answer:
    """A review."""
    global failing
    if path == "/healthz":
        return 200, "ok"
    if path == "/fault":
        failing = float(query["percent"])
        return 200, {"version": VERSION, "failing": failing}
    if path.startswith("/slow"):
        threading.Event().wait(1)
    if chance.random() * 100 < failing:
        return 500, {"problem": "out of order", "version": VERSION}
    review = {"version": VERSION, "text": "a book like no other"}
    if VERSION == "v1":
        return 200, review
    try:
        status, error, body = get("ratings", 9080, path)
    except (OSError, http.client.HTTPException) as exc:
        return 502, {"problem": f"{type(exc).__name__}: {exc}", "version": VERSION}
    if status != 200:
        return status, {"problem": f"ratings answered {status}", "error": error, "version": VERSION}
    return 200, {**review, "stars": json.loads(body)["stars"]}


if __name__ == "__main__":
    serve(9080, page)
