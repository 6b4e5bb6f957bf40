"""When the soak calls a process leaky."""

from bench.soak import Sample, growth


def _samples(*rss: float, fds: int = 30) -> list[Sample]:
    return [Sample(float(i), value, fds) for i, value in enumerate(rss)]


def test_flat_memory_passes() -> None:
    assert growth(_samples(*[35.0] * 30), 30) == ""


def test_growth_within_the_bound_passes() -> None:
    assert growth(_samples(*[35.0] * 10, *[55.0] * 20), 30) == ""


def test_growth_beyond_the_bound_fails() -> None:
    assert "memory grew from 35.0 to 56.0 MB" in growth(_samples(*[35.0] * 12, *[56.0] * 18), 30)


def test_more_descriptors_fail() -> None:
    samples = [*_samples(*[35.0] * 12), Sample(20.0, 35.0, 95)]
    assert "descriptors grew from 30 to 95" in growth(samples, 30)


def test_no_samples_are_no_pass() -> None:
    assert growth([], 30) != ""
    assert growth(_samples(1.0), 30) != ""
