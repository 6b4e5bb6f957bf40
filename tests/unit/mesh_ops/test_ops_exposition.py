import math
import re

from hypothesis import given
from hypothesis import strategies as st

from mesh_ops.exposition import chunks, number, render
from mesh_ops.registry import Registry
from mesh_proxy.telemetry.stats import ProxyStats

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"'
VALUE = r"(NaN|[+-]Inf|-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)"
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? {VALUE}")
ESCAPE = {"\\\\": "\\", "\\n": "\n", '\\"': '"'}


def unescape(text):
    return re.sub(r"\\.", lambda match: ESCAPE[match.group()], text)


def parse(page):
    """A strict reader: {family: (kind, help, {(sample name, ((label, value), ...)): number})}."""
    text = page.decode("utf-8")
    assert text == "" or text.endswith("\n")
    families = {}
    current = kind = ""
    lines = iter(text.split("\n")[:-1])
    for line in lines:
        if line.startswith("# HELP "):
            _, _, current, help_text = line.split(" ", 3)
            assert current not in families
            declaration = next(lines)
            assert declaration.startswith(f"# TYPE {current} ")
            kind = declaration.split(" ")[3]
            assert kind in ("counter", "gauge", "histogram")
            families[current] = (kind, unescape(help_text), {})
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        name, labels, value = match.group(1), match.group(2) or "", match.groups()[-1]
        ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        assert name in [current + end for end in ends]
        pairs = tuple((key, unescape(text)) for key, text in re.findall(LABEL, labels))
        assert len({key for key, _ in pairs}) == len(pairs)
        samples = families[current][2]
        assert (name, pairs) not in samples
        samples[name, pairs] = float(value)
    return families


def test_an_empty_registry():
    assert render(Registry()) == b""


def test_the_whole_page():
    registry = Registry()
    registry.counter("b_total", "Back\\slash and\nnew line.", ("x",)).child('q"\\\n').value += 2
    registry.gauge("a", "A.").child().set(1.5)
    registry.histogram("c_seconds", "C.", ("x",), (0.5, 1)).child("v").observe(0.75)
    registry.histogram("d_seconds", "D.", (), (0.5,)).child()
    page = render(registry)
    assert page.decode().split("# HELP triomesh")[0] == (
        "# HELP a A.\n"
        "# TYPE a gauge\n"
        "a 1.5\n"
        "# HELP b_total Back\\\\slash and\\nnew line.\n"
        "# TYPE b_total counter\n"
        'b_total{x="q\\"\\\\\\n"} 2\n'
        "# HELP c_seconds C.\n"
        "# TYPE c_seconds histogram\n"
        'c_seconds_bucket{x="v",le="0.5"} 0\n'
        'c_seconds_bucket{x="v",le="1.0"} 1\n'
        'c_seconds_bucket{x="v",le="+Inf"} 1\n'
        'c_seconds_sum{x="v"} 0.75\n'
        'c_seconds_count{x="v"} 1\n'
        "# HELP d_seconds D.\n"
        "# TYPE d_seconds histogram\n"
        'd_seconds_bucket{le="0.5"} 0\n'
        'd_seconds_bucket{le="+Inf"} 0\n'
        "d_seconds_sum 0.0\n"
        "d_seconds_count 0\n"
    )
    assert parse(page)["b_total"] == (
        "counter",
        "Back\\slash and\nnew line.",
        {("b_total", (("x", 'q"\\\n'),)): 2.0},
    )


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8, unique=True), st.text(max_size=40))
def test_any_text_survives(values, help_text):
    registry = Registry()
    family = registry.counter("x_total", help_text, ("v",))
    for value in values:
        family.child(value).value += 1
    kind, help_read, samples = parse(render(registry))["x_total"]
    assert (kind, help_read) == ("counter", help_text)
    assert {labels[0][1] for _, labels in samples} == set(values)


def test_what_is_not_unicode_is_replaced():
    registry = Registry()
    registry.counter("x_total", "X.", ("v",)).child("a\udc80")
    assert b'x_total{v="a?"} 0' in render(registry)


def test_numbers():
    assert [number(x) for x in (0, 12, 0.5, 1e-7, 1e300, math.inf, -math.inf, math.nan)] == (
        ["0", "12", "0.5", "1e-07", "1e+300", "+Inf", "-Inf", "NaN"]
    )


def test_buckets_are_cumulative_and_agree_with_the_count():
    stats = ProxyStats(Registry())
    requests = stats.request_stats("inbound", "d", "w", False)
    for i in range(1000):
        requests.done(200, "", i * i / 10_000)
    kind, _, samples = parse(render(stats.registry))["triomesh_request_duration_seconds"]
    assert kind == "histogram"
    counts = [value for (name, _), value in samples.items() if name.endswith("_bucket")]
    assert counts == sorted(counts)
    assert counts[-1] == 1000
    assert [value for (name, _), value in samples.items() if name.endswith("_count")] == [1000]


def test_a_large_family_comes_in_pieces_and_may_change_between_them():
    registry = Registry()
    family = registry.counter("x_total", "X.", ("v",))
    for i in range(150):
        family.child(str(i))
    pieces = []
    for piece in chunks(registry):
        pieces.append(piece)
        family.forget((str(len(pieces)),))
        family.child(f"new {len(pieces)}")
    assert len(pieces) == 4  # three of this family, one that counts overflows
    assert len(parse(b"".join(pieces))["x_total"][2]) == 150
