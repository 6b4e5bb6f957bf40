"""Many slow requests to `reviews` at once; writes how many answers had which status and
`x-triomesh-error`.

Environment: REQUESTS, all at the same time.
"""

import collections
import http.client
import os
import threading

from .serve import get

answers: list[tuple[int, str]] = []


def once(number: int) -> None:
    """One request."""
    try:
        status, error, _ = get("reviews", 9080, f"/slow/{number}")
    except (OSError, http.client.HTTPException) as exc:
        status, error = 0, f"{type(exc).__name__}: {exc}"
    answers.append((status, error))


if __name__ == "__main__":
    threads = [threading.Thread(target=once, args=(number,)) for number in range(int(os.environ["REQUESTS"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (status, error), count in collections.Counter(answers).most_common():
        print(f"{count} x {status} {error}".rstrip(), flush=True)
