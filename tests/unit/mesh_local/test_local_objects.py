"""The helpers for objects as plain data."""

import random
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from mesh_local.machinery import objects

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}


def test_copy_is_deep() -> None:
    made = objects.copy(POD)
    assert made == POD
    made["metadata"]["labels"]["a"] = "c"
    assert objects.labels_of(POD) == {"a": "b"}


def test_reading_what_may_be_absent() -> None:
    assert (objects.name_of(POD), objects.namespace_of(POD), objects.uid_of(POD)) == ("p", "n", "u")
    assert (objects.name_of({}), objects.labels_of({"metadata": None})) == ("", {})
    assert objects.dig(POD, "status", "conditions", 0, "type") == "Ready"
    assert objects.dig(POD, "status", "conditions", 7, default="x") == "x"
    assert objects.dig(POD, "kind", "x") is None
    assert objects.condition(POD, "Ready") == {"type": "Ready", "status": "True"}
    assert objects.condition({}, "Ready") is None


def test_owner_references() -> None:
    reference = objects.owner_reference(POD)
    assert objects.controller_of({"metadata": {"ownerReferences": [reference]}}) == reference
    assert (
        objects.controller_of({"metadata": {"ownerReferences": [reference | {"controller": False}]}}) is None
    )


def test_times() -> None:
    moment = datetime(2026, 1, 1, 1, 0, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    assert objects.rfc3339(moment) == "2026-01-01T00:00:00Z"
    assert objects.rfc3339_micro(moment) == "2026-01-01T00:00:00.000005Z"
    assert objects.rfc3339_micro(moment.replace(microsecond=0)) == "2026-01-01T00:00:00.000000Z"
    assert objects.rfc3339(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00Z"
    assert objects.parse_time("2026-01-01T00:00:00.000005Z") == moment
    with pytest.raises(ValueError, match="yesterday"):
        objects.parse_time("yesterday")


def test_random_names_follow_the_generator_they_are_given() -> None:
    assert objects.new_uid(random.Random(1)) == objects.new_uid(random.Random(1))
    assert re.fullmatch(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", objects.new_uid(random.Random(2)))
    assert re.fullmatch(f"[{objects.SUFFIX_ALPHABET}]{{5}}", objects.random_suffix(random.Random(3)))
