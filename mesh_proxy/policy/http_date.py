"""Retry-After: seconds or an HTTP date (RFC 9110, 5.6.7 and 10.2.3), in all three forms of a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), 1
    )
}
_MONTH = rb"(?P<month>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_TIME = rb"(?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2})"
_FORMS = tuple(
    re.compile(form).fullmatch
    for form in (
        rb"[A-Z][a-z]{2}, (?P<day>[0-9]{2}) " + _MONTH + rb" (?P<year>[0-9]{4}) " + _TIME + rb" GMT",
        rb"[A-Z][a-z]{5,8}, (?P<day>[0-9]{2})-" + _MONTH + rb"-(?P<year>[0-9]{2}) " + _TIME + rb" GMT",
        rb"[A-Z][a-z]{2} " + _MONTH + rb" (?P<day>[ 0-9][0-9]) " + _TIME + rb" (?P<year>[0-9]{4})",
    )
)
_seconds = re.compile(rb"[0-9]+").fullmatch


def http_date(text: bytes, now_unix: float) -> float | None:
    """Unix time of an HTTP date; None for anything else.

    A year of two digits that seems more than 50 years ahead is one of the past century (RFC 9110, 5.6.7).
    """
    for form in _FORMS:
        match = form(text)
        if match is None:
            continue
        year = int(match["year"])
        hour, minute, second = map(int, match["time"].split(b":"))
        try:
            if len(match["year"]) == 2:
                this_year = datetime.fromtimestamp(now_unix, UTC).year
                year += this_year - this_year % 100
                if year > this_year + 50:
                    year -= 100
            # A leap second (60) is the next second.
            day = datetime(year, _MONTHS[match["month"]], int(match["day"]), hour, minute, tzinfo=UTC)
        except (ValueError, OverflowError, OSError):
            return None
        return day.timestamp() + second if second <= 60 else None
    return None


def retry_after_s(value: bytes, now_unix: float) -> float | None:
    """Seconds to wait by a Retry-After field; a date that is past means 0, and None that it says nothing."""
    value = value.strip(b" \t")
    if _seconds(value):
        return float(value)
    at = http_date(value, now_unix)
    return None if at is None else max(at - now_unix, 0.0)
