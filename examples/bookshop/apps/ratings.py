"""Stars for books."""

import zlib

from .serve import Answer, serve


def page(path: str, query: dict[str, str]) -> Answer:
    """One to five stars, always the same for the same book."""
    return 200, {"stars": 1 + zlib.crc32(path.encode()) % 5}


if __name__ == "__main__":
    serve(9080, page)
