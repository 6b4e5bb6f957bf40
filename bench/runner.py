"""Repetitions, interleaved: each repetition measures every peer in turn, each time in another order."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable, Sequence

import trio

from bench.cases import Case, Env, Figures, check
from bench.peers import HYPER, OURS, pair
from bench.procs import BenchError, free_port, messages
from bench.report import DIRECT, Row

_HYPER_RUNS = 3
_WITHIN_S = 60.0
"""Bound of one measurement."""
Measure = Callable[[], Awaitable[Figures]]


def progress(text: str) -> None:
    """Tell the user on stderr."""
    print(text, file=sys.stderr, flush=True)


class Runs:
    """The rows of one case, filled as it runs."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rows = [Row(case.name, metric) for metric in case.metrics]

    def fail(self, who: str, text: str) -> None:
        """Note an error of one peer."""
        progress(f"  {who}: error: {text}")
        for row in self.rows:
            row.errors.setdefault(who, text)

    def add(self, who: str, figures: Figures) -> None:
        """Note the figures of one run."""
        for row in self.rows:
            if row.metric.key in figures:
                row.runs.setdefault(who, []).append(figures[row.metric.key])

    def add_difference(self, who: str, figures: Figures, direct: Figures) -> None:
        """Note what the pair adds to the figures without proxies in the same repetition."""
        self.add(who, {f"added_{key}": figures[key] - direct[key] for key in direct})


async def run_case(env: Env, case: Case, peers: Sequence[str], runs: Runs, repetitions: int) -> None:
    """Measure one case; errors of a peer end its part in it and are noted in `runs`."""
    async with contextlib.AsyncExitStack() as stack:
        measures = {}
        for peer in (OURS, *case.among(peers)):
            measure = await _prepare(stack, env, case, peer, runs)
            if measure is not None:
                measures[peer] = measure
        if case.on_direct is not None:
            on_direct = case.on_direct
            measures[DIRECT] = lambda: on_direct(env)
        if case.on_pair is not None:
            for who in list(measures):
                await _attempt(measures, who, runs)  # warm-up
        for repetition in range(min(repetitions, case.most_runs)):
            order = [who for who in measures if who != HYPER or repetition < _HYPER_RUNS]
            shift = repetition % max(len(order), 1)
            got: dict[str, Figures] = {}
            for who in order[shift:] + order[:shift]:
                figures = await _attempt(measures, who, runs)
                if figures is not None:
                    got[who] = figures
            direct = got.pop(DIRECT, None)
            for who, figures in got.items():
                runs.add(who, figures)
                if direct is not None:
                    runs.add_difference(who, figures, direct)
            main = {who: round(figures[""], 3) for who, figures in got.items()}
            progress(f"  {repetition + 1}: {main}")


async def _attempt(measures: dict[str, Measure], who: str, runs: Runs) -> Figures | None:
    try:
        with trio.fail_after(_WITHIN_S):
            figures = await measures[who]()
    except* trio.TooSlowError:
        runs.fail(who, f"not done within {_WITHIN_S:g} s")
    except* (BenchError, OSError) as group:
        runs.fail(who, messages(group))
    else:
        return figures
    del measures[who]
    return None


async def _prepare(
    stack: contextlib.AsyncExitStack, env: Env, case: Case, peer: str, runs: Runs
) -> Measure | None:
    if case.on_peer is not None:
        on_peer = case.on_peer
        return lambda: on_peer(env, peer)
    try:
        layout = env.layout(case.mode, free_port() if case.mode == "tcp" else None, case.policy)
        it = await stack.enter_async_context(pair(peer, layout))
        await check(env, it)
    except (BenchError, OSError) as exc:
        runs.fail(peer, str(exc))
        return None
    on_pair = case.on_pair
    assert on_pair is not None
    return lambda: on_pair(env, it)
