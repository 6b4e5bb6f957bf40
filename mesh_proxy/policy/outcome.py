"""How a request ended: error flags, whose fault they are, and the header that tells the caller."""

from __future__ import annotations

import enum
import re

ERROR_HEADER = b"x-triomesh-error"
MAX_RULE = 320
MAX_ENDPOINT = 64
MAX_DETAIL = 256


class Flag(enum.StrEnum):
    """Error flags, named as Envoy's response flags; `status` is what the sidecar answers, 0 for nothing."""

    status: int
    description: str

    def __new__(cls, value: str, status: int, description: str) -> Flag:
        flag = str.__new__(cls, value)
        flag._value_ = value
        flag.status = status
        flag.description = description
        return flag

    UH = "UH", 503, "no healthy endpoint"
    UF = "UF", 503, "the connection to the endpoint failed"
    UO = "UO", 503, "a circuit breaker is open"
    UC = "UC", 503, "the endpoint closed the connection"
    UT = "UT", 504, "the request timed out"
    URX = "URX", 503, "the retries are spent"
    NR = "NR", 404, "no route matches the request"
    NC = "NC", 503, "the control plane has not answered for this address"
    DC = "DC", 0, "the client closed the connection"
    DPE = "DPE", 400, "the client broke the protocol"
    UPE = "UPE", 502, "the endpoint broke the protocol"
    UAEX = "UAEX", 403, "access was denied"
    SI = "SI", 408, "the stream was idle for too long"
    FI = "FI", 503, "a fault was injected on purpose"


ENDPOINT_FLAGS = frozenset({Flag.UF, Flag.UC, Flag.UT, Flag.UPE})
"""Flags that speak against the endpoint that was tried."""

_UNSAFE = re.compile(r"[^ !#-\[\]-~]")


def classify(outcome: int | str) -> bool:
    """Whether the endpoint failed: a status of 500 and above, or a flag that is the endpoint's fault.

    What the client, the policy or this sidecar caused does not count against an endpoint.
    """
    if isinstance(outcome, int):
        return outcome >= 500
    return outcome in ENDPOINT_FLAGS


def error_header(
    flag: str, side: str, rule: str = "", endpoint: str = "", detail: str = "", subset: str = ""
) -> bytes:
    """The value of `x-triomesh-error`: parameters with quoted values, visible ASCII only, bounded.

    Args:
        flag: a Flag.
        side: which sidecar made the response, client or server.
        rule: destination or route that decided; left out when empty, like the following.
        endpoint: address and port.
        detail: one sentence.
        subset: of the destination, where the route leads to one.
    """
    parts = [f"flag={_token(flag)}", f"side={_token(side)}"]
    if rule:
        parts.append(f'rule="{_quoted(rule, MAX_RULE)}"')
    if subset:
        parts.append(f'subset="{_quoted(subset, MAX_ENDPOINT)}"')
    if endpoint:
        parts.append(f'endpoint="{_quoted(endpoint, MAX_ENDPOINT)}"')
    if detail:
        parts.append(f'detail="{_quoted(detail, MAX_DETAIL)}"')
    return "; ".join(parts).encode("ascii")


def _token(text: str) -> str:
    token = "".join([char for char in text[:16] if char.isascii() and (char.isalnum() or char == "-")])
    return token or "-"


def _quoted(text: str, limit: int) -> str:
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return _UNSAFE.sub(_replace, cut)


def _replace(match: re.Match[str]) -> str:
    char = match.group()
    return f"\\{char}" if char in '"\\' else "?"
