"""docs/configuration.md, docs/concepts.md: the example is legal; fields, defaults, flags are the code's."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh_api import sidecar, traffic
from mesh_api.sidecar import ConfigError, decode_snapshot
from mesh_api.traffic import Message
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.policy.routing import Caller, Router

DOCS = Path(__file__).resolve().parents[3] / "docs"
TEXT = (DOCS / "configuration.md").read_text()
POLICY = (DOCS / "policy.md").read_text()


def example() -> dict[str, Any]:
    (found,) = re.findall(r"^```json\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    return dict(json.loads(found))


def test_the_example_is_legal() -> None:
    (reviews,) = decode_snapshot(json.dumps(example()).encode()).destinations
    router = Router(reviews.routes, Caller("shop", "web", {"app": "web"}))
    assert len(router.rules) == len(reviews.routes) == 2
    assert set(reviews.subsets) == {"v1", "v2"}


def test_the_refusal_is_that_of_the_code() -> None:
    wrong = example()
    wrong["destinations"][0]["routes"][1]["to"][1]["subset"] = "v3"
    with pytest.raises(ConfigError) as refused:
        decode_snapshot(json.dumps(wrong).encode())
    (said,) = [json.loads(line) for line in TEXT.splitlines() if line.startswith('{"level"')]
    assert (said["path"], said["expected"]) == (refused.value.path, refused.value.expected)


def messages() -> list[type[Message]]:
    found = [each for module in (sidecar, traffic) for each in vars(module).values()]
    return sorted(
        {one for one in found if isinstance(one, type) and issubclass(one, Message)} - {Message},
        key=lambda each: each.__name__,
    )


@pytest.mark.parametrize("message", messages(), ids=lambda each: each.__name__)
def test_every_field_is_named(message: type[Message]) -> None:
    # What routes share with policies is explained there.
    text = TEXT + POLICY
    missing = [name for name in message.__struct_encode_fields__ if not re.search(rf"\b{name}\b", text)]
    assert missing == []


@pytest.mark.parametrize(
    "message",
    [
        traffic.Timeouts,
        traffic.Breaker,
        traffic.Outliers,
        traffic.Retries,
        traffic.Backoff,
        traffic.Budget,
    ],
)
def test_the_defaults_are_those_of_the_code(message: type[Message]) -> None:
    numbers = {
        field.encode_name: field.default
        for field in msgspec.structs.fields(message)
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }
    assert numbers
    assert [name for name, value in numbers.items() if f"`{name}` {value:g}" not in TEXT] == []


def test_every_flag_is_explained() -> None:
    rows = re.findall(r"^\| ([A-Z]{2,4}) \| ([^|]+) \|", (DOCS / "concepts.md").read_text(), re.MULTILINE)
    statuses = dict(rows)
    assert set(statuses) == {flag.value for flag in Flag}
    for flag in set(Flag) - {Flag.FI, Flag.DC}:
        assert str(flag.status) in statuses[flag.value]
