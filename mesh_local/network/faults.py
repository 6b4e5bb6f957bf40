"""Packet faults as pods ask for them, and loss by iptables for kernels without netem: pure."""

import math
from collections.abc import Mapping
from typing import Final

from mesh_local.network.types import NetworkError, PacketFaults

ANNOTATIONS: Final = {
    "loss_percent": "local.triomesh.dev/packet-loss-percent",
    "delay_ms": "local.triomesh.dev/packet-delay-ms",
    "jitter_ms": "local.triomesh.dev/packet-jitter-ms",
}


def check(faults: PacketFaults) -> None:
    """Raises NetworkError."""
    if not 0 <= faults.loss_percent <= 100:
        raise NetworkError(f"packet loss: expected 0 to 100 percent, not {faults.loss_percent}")
    if faults.delay_ms < 0 or faults.jitter_ms < 0:
        raise NetworkError("packet delay and jitter: expected no negative number")
    if faults.jitter_ms and not faults.delay_ms:
        raise NetworkError("packet jitter: expected a delay with it")


def of_annotations(annotations: Mapping[str, str]) -> PacketFaults:
    """What a pod's annotations ask for. Raises NetworkError."""
    values = {}
    for field, annotation in ANNOTATIONS.items():
        text = annotations.get(annotation, "0")
        try:
            values[field] = float(text)
        except ValueError:
            raise NetworkError(f"annotation {annotation}: expected a number, not {text!r}") from None
        if not math.isfinite(values[field]):
            raise NetworkError(f"annotation {annotation}: expected a number, not {text!r}")
    found = PacketFaults(**values)
    check(found)
    return found


def loss_table(loss: Mapping[str, float]) -> str:
    """The restore text of the mangle table, which holds nothing else, for percentages by link."""
    lines = ["*mangle", ":TM-LOSS - [0:0]", "-A POSTROUTING -j TM-LOSS"]
    lines += [
        f"-A TM-LOSS -o {link} -m statistic --mode random --probability {percent / 100:.6f} -j DROP"
        for link, percent in sorted(loss.items())
        if percent
    ]
    return "\n".join([*lines, "COMMIT", ""])
