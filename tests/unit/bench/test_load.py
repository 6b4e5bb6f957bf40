"""Reading what the load generators print."""

import pytest

from bench.load import parse_h2load, parse_wrk, percentile
from bench.procs import BenchError

GOOD = """\
Running 2s test @ http://127.0.0.1:15000/1k
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.21ms    0.91ms  14.20ms   88.01%
    Req/Sec    14.51k     1.10k   16.02k    70.00%
  Latency Distribution
     50%  890.00us
     75%    2.51ms
     90%    3.10ms
     99%    1.02s
  28912 requests in 2.00s, 36.20MB read
Requests/sec:  14455.12
Transfer/sec:     18.10MB
"""


def test_wrk_output_is_read() -> None:
    result = parse_wrk(GOOD)
    assert result.requests == 28912
    assert result.rps == 14455.12
    assert result.percentiles_ms == {50: 0.89, 75: 2.51, 90: 3.1, 99: 1020.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  Socket errors: connect 0, read 3, write 0, timeout 1", "read 3"),
        ("  Non-2xx or 3xx responses: 12", "12 answers"),
    ],
)
def test_wrk_failures_are_errors(line: str, message: str) -> None:
    text = GOOD.replace("Requests/sec", f"{line}\nRequests/sec")
    with pytest.raises(BenchError, match=message):
        parse_wrk(text)


@pytest.mark.parametrize("cut", ["     99%", "Requests/sec", "  28912 requests"])
def test_wrk_output_with_a_part_missing_is_an_error(cut: str) -> None:
    text = "".join(line for line in GOOD.splitlines(True) if not line.startswith(cut))
    with pytest.raises(BenchError, match="version 4"):
        parse_wrk(text)


def test_no_answer_at_all_is_an_error() -> None:
    with pytest.raises(BenchError, match="no request"):
        parse_wrk(GOOD.replace("28912 requests", "0 requests"))


H2_GOOD = """\
finished in 2.02s, 8902.48 req/s, 9.80MB/s
requests: 17885 total, 17965 started, 17885 done, 17885 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 17885 2xx, 0 3xx, 0 4xx, 0 5xx
"""
H2_LOG = "".join(f"1795000000000000\t200\t{1000 * n}\n" for n in range(1, 101))


def test_h2load_output_is_read() -> None:
    result = parse_h2load(H2_GOOD, H2_LOG)
    assert result.requests == 17885
    assert result.rps == 8902.48
    assert result.percentiles_ms == {50: 50.0, 99: 99.0}


@pytest.mark.parametrize(
    ("text", "log", "message"),
    [
        (
            H2_GOOD.replace("17885 succeeded, 0 failed", "17884 succeeded, 1 failed"),
            H2_LOG,
            "1 requests failed",
        ),
        (H2_GOOD.replace("0 timeout", "2 timeout"), H2_LOG, "2 timed out"),
        (H2_GOOD.replace("17885 succeeded", "0 succeeded"), "", "no request"),
        (H2_GOOD, H2_LOG.replace("\t200\t5000", "\t503\t5000"), "another status"),
        (H2_GOOD.replace("finished", "ended"), H2_LOG, "version 1.52"),
    ],
)
def test_h2load_failures_are_errors(text: str, log: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        parse_h2load(text, log)


def test_percentiles_are_nearest_rank() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([7.0], 99) == 7
    with pytest.raises(BenchError):
        percentile([], 50)
