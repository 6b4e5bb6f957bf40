"""What a check is, and how a list of them is run."""

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from manifests.values import Values
from meshctl.errors import KubeError
from meshctl.kube import Reader


class Outcome(enum.Enum):
    """What came of a check."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Could not be asked; it says nothing about the cluster."""


@dataclass(frozen=True)
class Result:
    """An outcome, in words."""

    outcome: Outcome
    detail: str = ""
    lines: tuple[str, ...] = ()
    """What it is about, one item each."""


def passed(detail: str = "") -> Result:
    return Result(Outcome.PASSED, detail)


def warning(detail: str, lines: Sequence[str] = ()) -> Result:
    return Result(Outcome.WARNING, detail, tuple(lines))


def failed(detail: str, lines: Sequence[str] = ()) -> Result:
    return Result(Outcome.FAILED, detail, tuple(lines))


def skipped(reason: str) -> Result:
    return Result(Outcome.SKIPPED, reason)


@dataclass(frozen=True)
class Target:
    """What checks look at."""

    kube: Reader
    values: Values
    """Of the installation, or of the one that is to be."""
    now: Callable[[], datetime]

    @property
    def namespace(self) -> str:
        return self.values.namespace


@dataclass(frozen=True)
class Check:
    """One question about a cluster, with what to do where the answer is no."""

    id: str
    title: str
    hint: str
    run: Callable[[Target], Result]
    fatal: bool = False
    """Where it fails, nothing after it can be answered."""


def run_all(checks: Sequence[Check], target: Target) -> Iterator[tuple[Check, Result]]:
    """Run checks in order, each to its own result."""
    stopped = ""
    for check in checks:
        if stopped:
            yield check, skipped(f"`{stopped}` failed")
            continue
        result = _run(check, target)
        if check.fatal and result.outcome is Outcome.FAILED:
            stopped = check.title
        yield check, result


def _run(check: Check, target: Target) -> Result:
    try:
        return check.run(target)
    except KubeError as exc:
        if exc.status == 403:
            return skipped(f"not allowed: {exc}")
        return failed(str(exc))
