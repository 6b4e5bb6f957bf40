"""Packet faults as pods ask for them."""

import pytest

from mesh_local.network.faults import of_annotations
from mesh_local.network.types import NetworkError, PacketFaults


def asked(**values: str) -> dict[str, str]:
    return {f"local.triomesh.dev/packet-{name.replace('_', '-')}": text for name, text in values.items()}


def test_annotations_say_loss_delay_and_jitter() -> None:
    assert of_annotations({}) == PacketFaults()
    found = of_annotations(asked(loss_percent="2.5", delay_ms="20", jitter_ms="5"))
    assert found == PacketFaults(2.5, 20, 5)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (asked(loss_percent="many"), "packet-loss-percent: expected a number, not 'many'"),
        (asked(loss_percent="nan"), "expected a number"),
        (asked(loss_percent="101"), "expected 0 to 100 percent"),
        (asked(delay_ms="-1"), "expected no negative number"),
        (asked(jitter_ms="5"), "expected a delay with it"),
    ],
)
def test_wrong_annotations_say_what_was_expected(annotations: dict[str, str], expected: str) -> None:
    with pytest.raises(NetworkError, match=expected):
        of_annotations(annotations)
