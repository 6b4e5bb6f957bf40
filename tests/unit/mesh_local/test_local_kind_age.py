"""Ages as kubectl prints them."""

from datetime import UTC, datetime, timedelta

import pytest

from mesh_local.kinds.age import age, age_of, since

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (2 * MINUTE, "2m"),
        (3 * MINUTE + 2, "3m2s"),
        (10 * MINUTE + 30, "10m"),
        (179 * MINUTE, "179m"),
        (3 * HOUR, "3h"),
        (7 * HOUR + 59 * MINUTE, "7h59m"),
        (8 * HOUR + MINUTE, "8h"),
        (47 * HOUR, "47h"),
        (2 * DAY, "2d"),
        (7 * DAY + 3 * HOUR, "7d3h"),
        (8 * DAY + 3 * HOUR, "8d"),
        (729 * DAY, "729d"),
        (2 * 365 * DAY, "2y"),
        (2 * 365 * DAY + 5 * DAY, "2y5d"),
        (8 * 365 * DAY + 5 * DAY, "8y"),
    ],
)
def test_units_change_where_kubernetes_changes_them(seconds: int, text: str) -> None:
    assert age(timedelta(seconds=seconds)) == text


def test_the_age_of_an_object_is_that_of_its_creation() -> None:
    assert age_of({"metadata": {"creationTimestamp": "2026-01-01T23:59:55Z"}}, NOW) == "5s"
    assert since(None, NOW) == "<unknown>"
