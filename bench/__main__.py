"""`python -m bench`: measure ours beside the peers, all in one run."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from bench import pki
from bench.cases import CASES, Case, Env
from bench.origin import origin
from bench.peers import OURS, PEERS
from bench.procs import BenchError, interruptible, messages
from bench.report import Row, table, to_json
from bench.runner import Runs, progress, run_case

_FULL_S = 930.0
_QUICK_S = 298.0
_NAMES = [case.name for case in CASES]


async def _measure(
    directory: Path, cases: Sequence[Case], peers: Sequence[str], repetitions: int, quick: bool
) -> list[Row]:
    every = [Runs(case) for case in cases]
    bound = _QUICK_S if quick else _FULL_S
    with trio.move_on_after(bound) as scope:
        async with trio.open_nursery() as nursery:
            keys = pki.create(directory)
            await nursery.start(keys.serve)
            async with origin(directory) as app:
                env = Env(directory, keys, app, quick)
                for runs in every:
                    progress(f"{runs.case.name}:")
                    await run_case(env, runs.case, peers, runs, repetitions)
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        for runs in every:
            for who in (OURS, *runs.case.among(peers)):
                if not runs.rows[0].runs.get(who):
                    runs.fail(who, f"not measured: {bound:g} s were over")
    return [row for runs in every for row in runs.rows]


def _peers(_context: click.Context, _option: click.Parameter, text: str) -> list[str]:
    peers = [peer for peer in text.split(",") if peer]
    for peer in peers:
        if peer not in PEERS:
            raise click.BadParameter(f"expected some of {','.join(PEERS)}, got {peer!r}")
    return peers


@click.command()
@click.option("--quick", is_flag=True, help="Short measurements and 3 repetitions; under 5 minutes.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file.")
@click.option("--case", "names", multiple=True, type=click.Choice(_NAMES), help="Only this case; repeatable.")
@click.option("--runs", type=click.IntRange(1, 1000), help="Repetitions; 7 by default, 3 with --quick.")
@click.option(
    "--peers", default=",".join(PEERS), show_default=True, callback=_peers, help="Whom to compare with."
)
def main(
    quick: bool, json_file: Path | None, names: tuple[str, ...], runs: int | None, peers: list[str]
) -> None:
    """Measure a pair of sidecars beside the same pair of Envoy and of HAProxy.

    HTTP/2 is measured beside Envoy, and once more with our other engine (hyper).

    Exit code 1 if ours failed in a case.
    """
    cases = [case for case in CASES if not names or case.name in names]
    repetitions = runs or (3 if quick else 7)
    interruptible()
    load = os.getloadavg()[0]
    progress(f"{os.cpu_count()} CPUs, load {load:.1f}, {repetitions} repetitions of {len(cases)} cases")
    failed = 0
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="triomesh-bench-") as directory:
            rows = trio.run(_measure, Path(directory), cases, peers, repetitions, quick)
    except* KeyboardInterrupt:
        progress("interrupted")
        failed = 130
    except* BenchError as group:
        progress(messages(group))
        failed = 1
    if failed:
        sys.exit(failed)
    print(table(rows, peers), end="", flush=True)
    if json_file is not None:
        json_file.write_bytes(to_json(rows, peers))
    if any(OURS in row.errors for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
