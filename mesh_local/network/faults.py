"""Packet loss by iptables, for kernels without netem: pure."""

from collections.abc import Mapping

from mesh_local.network.types import NetworkError, PacketFaults


def check(faults: PacketFaults) -> None:
    """Raises NetworkError."""
    if not 0 <= faults.loss_percent <= 100:
        raise NetworkError(f"packet loss: expected 0 to 100 percent, not {faults.loss_percent}")
    if faults.delay_ms < 0 or faults.jitter_ms < 0:
        raise NetworkError("packet delay and jitter: expected no negative number")
    if faults.jitter_ms and not faults.delay_ms:
        raise NetworkError("packet jitter: expected a delay with it")


def loss_table(loss: Mapping[str, float]) -> str:
    """The restore text of the mangle table, which holds nothing else, for percentages by link."""
    lines = ["*mangle", ":TM-LOSS - [0:0]", "-A POSTROUTING -j TM-LOSS"]
    lines += [
        f"-A TM-LOSS -o {link} -m statistic --mode random --probability {percent / 100:.6f} -j DROP"
        for link, percent in sorted(loss.items())
        if percent
    ]
    return "\n".join([*lines, "COMMIT", ""])
