"""The load generator: asks `web` for books at a steady rate and writes its totals each second, as JSON.

Environment: RATE (requests a second, all workers together), WORKERS, NOTICE_EVERY (one request in so many
also reads the notice board).
"""

import collections
import http.client
import itertools
import json
import os
import threading
import time
from typing import Any

from .serve import get

RATE = float(os.environ.get("RATE", "60"))
WORKERS = int(os.environ.get("WORKERS", "6"))
NOTICE_EVERY = int(os.environ.get("NOTICE_EVERY", "20"))

totals: collections.Counter[str] = collections.Counter()
"""By status, by version of the review, and `failed`, with the last failure's words in `problems`."""
problems: collections.deque[str] = collections.deque(maxlen=5)
lock = threading.Lock()
numbers = itertools.count()


def once(number: int) -> None:
    """One request."""
    path = f"/books/{number % 50}" + ("?notice=1" if number % NOTICE_EVERY == 0 else "")
    version = problem = ""
    status = 0
    try:
        status, error, body = get("web", 80, path)
        answer: dict[str, Any] = json.loads(body) if not error else {"problem": error}
        version = answer.get("review", {}).get("version", "")
        problem = answer.get("error") or answer.get("problem", "")
    except (OSError, ValueError, http.client.HTTPException) as exc:
        problem = f"{type(exc).__name__}: {exc}"
    with lock:
        totals["requests"] += 1
        totals[str(status)] += 1
        if version:
            totals[version] += 1
        if status != 200:
            totals["failed"] += 1
            problems.append(f"{status} {problem}")


def work(first: float) -> None:
    """Ask at this worker's share of the rate; what is late is not made up for."""
    due = first
    while True:
        due = max(due + WORKERS / RATE, time.monotonic() - 1)
        threading.Event().wait(max(0.0, due - time.monotonic()))
        once(next(numbers))


if __name__ == "__main__":
    for worker in range(WORKERS):
        begin = time.monotonic() + worker / RATE
        threading.Thread(target=work, args=(begin,), daemon=True).start()
    while True:
        threading.Event().wait(1)
        with lock:
            line = {**totals, "problems": list(problems)}
        print(json.dumps(line), flush=True)
