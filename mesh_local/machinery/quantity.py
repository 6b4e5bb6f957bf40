"""resource.Quantity: exact decimal numbers with a suffix (`100m`, `1Gi`, `1e3`), and their canonical form.

Follows apimachinery's `resource` package: nothing finer than a nano (rounded up, away from zero), nothing
beyond 2**63-1, and a canonical form that keeps the kind of suffix (decimal, binary, exponent).
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import total_ordering
from typing import Any

FORMAT_ERROR = r"quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
SUFFIX_ERROR = "unable to parse quantity's suffix"
# Longer text can only be noise; it also bounds the work of exact arithmetic.
MAX_LENGTH = 256

_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?(.*)", re.DOTALL)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_EXPONENT = re.compile(r"[eE]([+-]?[0-9]+)\Z")
_MAX = 2**63 - 1
_NANO = Fraction(1, 10**9)


class QuantityError(ValueError):
    """The text is not a quantity; the message is Kubernetes' own."""


@total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """A number and how it is written: `style` is `decimal`, `binary` or `exponent`."""

    value: Fraction
    style: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and self.value == other.value

    def __lt__(self, other: "Quantity") -> bool:
        return self.value < other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        return _canonical(self)

    def ceil(self) -> int:
        """The value rounded up to a whole number (Go's `Value()`)."""
        return -(-self.value.numerator // self.value.denominator)

    def milli(self) -> int:
        """Thousandths, rounded up (Go's `MilliValue()`)."""
        scaled = self.value * 1000
        return -(-scaled.numerator // scaled.denominator)


def parse(value: str | int | float) -> Quantity:
    """The quantity that a JSON string or number denotes.

    Raises:
        QuantityError: it does not follow the grammar.
    """
    text = _number_text(value)
    if not text or len(text) > MAX_LENGTH:
        raise QuantityError(FORMAT_ERROR)
    found = _NUMBER.match(text)
    if found is None:
        raise QuantityError(FORMAT_ERROR)
    sign, whole, fraction, suffix = found[1], found[2], found[3] or "", found[4]
    if not whole and not fraction:
        raise QuantityError(FORMAT_ERROR)
    if not re.fullmatch(r"[eEinumkKMGTP]*[-+]?[0-9]*", suffix):
        raise QuantityError(FORMAT_ERROR)
    scale, style = _suffix(suffix)
    number = Fraction(int(whole + fraction), 10 ** len(fraction)) * scale
    return Quantity(_bounded(-number if sign == "-" else number), style)


def canonical(value: str | int | float) -> str:
    """`0.5` -> `500m`, `1024Mi` -> `1Gi`. Raises QuantityError."""
    return str(parse(value))


def _number_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)


def _suffix(suffix: str) -> tuple[Fraction, str]:
    if suffix in _DECIMAL:
        return Fraction(10) ** _DECIMAL[suffix], "decimal"
    if suffix in _BINARY:
        return Fraction(2 ** _BINARY[suffix]), "binary"
    exponent = _EXPONENT.match(suffix)
    if exponent is None or len(exponent[1]) > 5 or abs(int(exponent[1])) > 1000:
        raise QuantityError(SUFFIX_ERROR)
    return Fraction(10) ** int(exponent[1]), "exponent"


def _bounded(value: Fraction) -> Fraction:
    """At most 2**63-1 either way, in whole nanos; what is finer is rounded away from zero."""
    size = abs(value)
    nanos = -(-(size / _NANO).numerator // (size / _NANO).denominator)
    size = min(nanos * _NANO, Fraction(_MAX))
    return -size if value < 0 else size


def _canonical(quantity: Quantity) -> str:
    value = quantity.value
    if value == 0:
        return "0"
    # A binary suffix cannot write a fraction, and Kubernetes writes what is below 1024 as decimal.
    if quantity.style == "binary" and value.denominator == 1 and abs(value) >= 1024:
        number, suffix = int(value), ""
        for name in _BINARY:
            if number % 1024:
                break
            number, suffix = number // 1024, name
        return f"{number}{suffix}"
    exponent = max(e for e in _DECIMAL.values() if (value / Fraction(10) ** e).denominator == 1)
    number = int(value / Fraction(10) ** exponent)
    if quantity.style == "exponent":
        return f"{number}e{exponent}" if exponent else str(number)
    suffix = next(s for s, e in _DECIMAL.items() if e == exponent)
    return f"{number}{suffix}"
