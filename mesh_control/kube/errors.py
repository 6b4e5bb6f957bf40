"""What the API server answers when it does not do what was asked: a meta/v1 Status."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

MAX_MESSAGE_CHARS = 2000


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: float = 0.0


class Status(msgspec.Struct):
    """The fields of a Status that are read here."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_status = msgspec.json.Decoder(Status)


class KubeError(Exception):
    """A request that failed.

    Args:
        code: HTTP status; 0 where there was no answer (then `reason` is `Unreachable` or `Timeout`).
        reason: the Status' reason such as `NotFound`, `AlreadyExists`, `Conflict`, `Forbidden`, `Expired`.
        message: the server's own text; it names verb and resource when permission is missing.
        retry_after_s: how long the server asks to wait; 0 for nothing said.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def not_found(self) -> bool:
        """The object, or its kind, is not there."""
        return self.code == 404

    @property
    def already_exists(self) -> bool:
        """A create came second."""
        return self.code == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """An update was made from an older version of the object."""
        return self.code == 409 and self.reason == "Conflict"

    @property
    def expired(self) -> bool:
        """A resourceVersion or continue token is too old: list again."""
        return self.code == 410


def from_status(status: Status, code: int = 0) -> KubeError:
    """The error that a Status describes; `code` is the response's where the Status has none."""
    return KubeError(
        status.code or code,
        status.reason,
        status.message[:MAX_MESSAGE_CHARS] or status.reason or f"HTTP {code}",
        status.details.retry_after_seconds if status.details else 0.0,
    )


def from_response(code: int, body: bytes, retry_after: str = "") -> KubeError:
    """The error of a response above 299, whether its body is a Status or not."""
    try:
        error = from_status(_status.decode(body), code)
    except msgspec.MsgspecError:
        phrase = HTTPStatus(code).phrase if code in set(HTTPStatus) else "an unknown status"
        text = body[:300].decode("utf-8", "replace").strip()
        error = KubeError(
            code, phrase.replace(" ", ""), f"HTTP {code} {phrase}" + (f": {text}" if text else "")
        )
    if not error.retry_after_s and retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6:
        error.retry_after_s = float(retry_after)
    return error
