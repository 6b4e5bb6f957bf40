"""The Prometheus text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterator

from mesh_ops.registry import AnyFamily, Counter, Gauge, Histogram, Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SERIES_PER_CHUNK = 64

_LABEL_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def render(registry: Registry) -> bytes:
    """The whole page at once."""
    return b"".join(chunks(registry))


def chunks(registry: Registry) -> Iterator[bytes]:
    """The page in pieces of at most 64 series, so that a large one can be written without holding the loop.

    Series may come and go between two pieces; each family is listed as it was when its turn came.
    """
    for family in registry.collect():
        series: list[tuple[tuple[str, ...], Counter | Gauge | Histogram]] = list(family.children.items())
        if not series:
            continue
        lines = [
            f"# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}",
            f"# TYPE {family.name} {family.kind.value}",
        ]
        for start in range(0, len(series), SERIES_PER_CHUNK):
            for key, child in series[start : start + SERIES_PER_CHUNK]:
                labels = _labels(family, key)
                if isinstance(child, Histogram):
                    _histogram(family.name, labels, child, lines)
                else:
                    lines.append(f"{family.name}{_braces(labels)} {number(child.read())}")
            lines.append("")
            yield "\n".join(lines).encode("utf-8", "replace")
            lines = []


def number(value: float) -> str:
    """A sample value or bucket bound as text."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _labels(family: AnyFamily, key: tuple[str, ...]) -> str:
    return ",".join(
        f'{name}="{value.translate(_LABEL_ESCAPES)}"' for name, value in zip(family.labels, key, strict=True)
    )


def _braces(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _histogram(name: str, labels: str, child: Histogram, lines: list[str]) -> None:
    prefix = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
    total = 0
    for bound, count in zip((*child.bounds, float("inf")), child.counts, strict=True):
        total += count
        lines.append(f'{prefix}le="{number(bound)}"}} {total}')
    lines.append(f"{name}_sum{_braces(labels)} {number(child.sum)}")
    lines.append(f"{name}_count{_braces(labels)} {total}")
