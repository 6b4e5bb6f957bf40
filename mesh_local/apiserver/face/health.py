"""/healthz, /livez and /readyz."""

from collections.abc import Callable, Mapping

from mesh_local.apiserver.face.messages import Answer, Request, text_answer

Checks = Mapping[str, Callable[[], bool]]


def health(request: Request, checks: Checks) -> Answer | None:
    """The answer of a health path; None for another path.

    Args:
        checks: by name, what must hold for the server to be ready.
    """
    path, _, one = request.path.strip("/").partition("/")
    if path not in ("healthz", "livez", "readyz") or (one and one not in checks):
        return None
    chosen = {one: checks[one]} if one else checks
    excluded = request.query.get("exclude", "")
    results = {name: check() for name, check in chosen.items() if name != excluded}
    failed = [name for name, ok in results.items() if not ok]
    if not failed and "verbose" not in request.query:
        return text_answer(200, "ok")
    lines = [f"[+]{name} ok" if ok else f"[-]{name} failed" for name, ok in results.items()]
    verdict = "failed" if failed else "passed"
    return text_answer(500 if failed else 200, "\n".join([*lines, f"{path} check {verdict}"]) + "\n")
