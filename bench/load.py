"""Starting the load generators and reading what they say."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.clients import HandshakeResult, RateResult, TcpResult
from bench.procs import BenchError, output

_GRACE_S = 20.0
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}
_PERCENTILE = re.compile(r"^ +(50|75|90|99)% +([0-9.]+)(us|ms|s|m|h)$", re.MULTILINE)
_TOTAL = re.compile(r"^ +(\d+) requests in ", re.MULTILINE)
_RPS = re.compile(r"^Requests/sec: +([0-9.]+)", re.MULTILINE)
_SOCKET_ERRORS = re.compile(r"^ +Socket errors: (.*)$", re.MULTILINE)
_H2_DONE = re.compile(
    r"^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$", re.MULTILINE
)
_H2_RPS = re.compile(r"^finished in [0-9.]+m?s, ([0-9.]+) req/s", re.MULTILINE)
_BAD_STATUS = re.compile(r"^ +Non-2xx or 3xx responses: (\d+)$", re.MULTILINE)

_Result = TypeVar("_Result", bound=msgspec.Struct)


@dataclass(frozen=True)
class WrkResult:
    """One run of wrk."""

    requests: int
    rps: float
    percentiles_ms: dict[int, float]


def parse_wrk(text: str) -> WrkResult:
    """Read what `wrk --latency` prints. Raises BenchError if requests failed or the text is unknown."""
    failed = _SOCKET_ERRORS.search(text)
    if failed:
        raise BenchError(f"wrk: socket errors: {failed[1]}")
    bad = _BAD_STATUS.search(text)
    if bad:
        raise BenchError(f"wrk: {bad[1]} answers with another status than 2xx or 3xx")
    total, rps = _TOTAL.search(text), _RPS.search(text)
    percentiles = {int(m[1]): round(float(m[2]) * _UNITS[m[3]], 6) for m in _PERCENTILE.finditer(text)}
    if total is None or rps is None or len(percentiles) != 4:
        raise BenchError("wrk: its output is not what version 4 prints")
    if not int(total[1]):
        raise BenchError("wrk: no request was answered")
    return WrkResult(int(total[1]), float(rps[1]), percentiles)


def percentile(values: list[float], percent: float) -> float:
    """The nearest-rank percentile. Raises BenchError without values."""
    if not values:
        raise BenchError("no sample in the window")
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


async def wrk(port: int, path: str, connections: int, seconds: int) -> WrkResult:
    """One run of wrk with one thread."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "5s"]
    url = f"http://127.0.0.1:{port}{path}"
    return parse_wrk(await output([*command, url], seconds + _GRACE_S))


@dataclass(frozen=True)
class H2Result:
    """One run of h2load."""

    requests: int
    rps: float
    percentiles_ms: dict[int, float]


def parse_h2load(text: str, log: str) -> H2Result:
    """Read what h2load prints, and its log of every request.

    Raises:
        BenchError: requests failed, or the text is unknown.
    """
    done, rps = _H2_DONE.search(text), _H2_RPS.search(text)
    if done is None or rps is None:
        raise BenchError("h2load: its output is not what version 1.52 prints")
    good, *bad = map(int, done.groups())
    if any(bad):
        raise BenchError("h2load: {} requests failed, {} errored, {} timed out".format(*bad))
    rows = [line.split("\t") for line in log.splitlines()]
    if not good or not rows:
        raise BenchError("h2load: no request was answered")
    if any(row[1] != "200" for row in rows):
        raise BenchError("h2load: answers with another status than 200")
    times = [int(row[2]) / 1e3 for row in rows]
    return H2Result(good, float(rps[1]), {percent: percentile(times, percent) for percent in (50, 99)})


async def h2load(port: int, path: str, log: Path, seconds: int, *options: str) -> H2Result:
    """One run of h2load with 8 connections of 10 streams each; `log` is a file of its own."""
    command = ["h2load", "-c8", "-m10", f"-D{seconds}", f"--log-file={log}", *options]
    text = await output([*command, f"http://127.0.0.1:{port}{path}"], seconds + _GRACE_S)
    return parse_h2load(text, _taken(log))


def _taken(file: Path) -> str:
    text = file.read_text()
    file.unlink()
    return text


def client_command(*arguments: str) -> list[str]:
    """How to start one of the generators of `bench.clients`."""
    return [sys.executable, "-m", "bench.clients", *arguments]


async def _client(kind: type[_Result], within_s: float, *arguments: object) -> _Result:
    command = client_command(*map(str, arguments))
    return msgspec.json.decode(await output(command, within_s + _GRACE_S), type=kind)


async def rate(port: int, rps: float, connections: int, seconds: float) -> RateResult:
    """1 KB requests at a fixed rate, open loop."""
    return await _client(RateResult, seconds, "rate", port, rps, connections, seconds)


async def handshakes(
    port: int, tls: tuple[str, str, str], concurrency: int, count: int, seconds: float
) -> HandshakeResult:
    """New mTLS connections with one request each. Raises BenchError if one fails."""
    result = await _client(HandshakeResult, seconds, "handshakes", port, *tls, concurrency, count, seconds)
    if result.errors:
        raise BenchError(
            f"handshakes: {result.errors} of {result.errors + result.count} failed: {result.error}"
        )
    return result


async def spread(port: int, destinations: int, count: int) -> None:
    """`count` requests of 1 KB, in turn to each of the destinations. Raises BenchError if one fails."""
    await output(client_command("spread", str(port), str(destinations), str(count)), 60.0)


async def tcp(entry: int, listen: int, seconds: float) -> TcpResult:
    """Throughput of opaque bytes. Raises BenchError if a byte is lost."""
    result = await _client(TcpResult, seconds, "tcp", entry, listen, seconds)
    if result.sent != result.received or not result.received:
        raise BenchError(f"tcp: {result.sent} bytes sent, {result.received} received")
    return result
