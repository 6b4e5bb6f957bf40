import json
import os
import threading

import pytest

from mesh_ops.log_writer import MAX_QUEUED_BYTES, LogWriter


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass


def fill(fd):
    """Fill a pipe to the last byte."""
    os.set_blocking(fd, False)
    for size in (65_536, 1):
        try:
            while True:
                os.write(fd, b"." * size)
        except BlockingIOError:
            pass
    os.set_blocking(fd, True)


def read_all(fd):
    data = b""
    while piece := os.read(fd, 65_536):
        data += piece
    return data


def test_lines_arrive_in_order(pipe):
    reader, end = pipe
    writer = LogWriter(end)
    lines = [b"line %d\n" % i for i in range(1000)]
    assert all(writer.put(line) for line in lines)
    assert writer.close(10)
    os.close(end)
    assert read_all(reader) == b"".join(lines)
    assert writer.dropped == 0


def test_waiting_lines_are_written_at_once(pipe, monkeypatch):
    _, end = pipe
    batches = []
    entered, go = threading.Event(), threading.Event()

    def write(fd, data):
        batches.append(bytes(data))
        entered.set()
        go.wait(10)
        return len(data)

    monkeypatch.setattr("mesh_ops.log_writer.os.write", write)
    writer = LogWriter(end)
    writer.put(b"0\n")
    assert entered.wait(10)
    for i in range(1, 101):
        writer.put(b"%d\n" % i)
    go.set()
    assert writer.close(10)
    assert batches == [b"0\n", b"".join(b"%d\n" % i for i in range(1, 101))]


def test_a_stalled_output_stops_nobody(pipe):
    reader, end = pipe
    fill(end)
    writer = LogWriter(end, capacity=10)
    results = [writer.put(b"x\n") for _ in range(1000)]
    kept = sum(results)
    # The thread may have taken one batch out of the queue before the rest filled it.
    assert 10 <= kept <= 20
    assert writer.dropped == 1000 - kept
    assert not writer.close(0.05)
    assert not writer.put(b"late\n")
    os.close(reader)  # the thread's write fails now, and the thread ends
    assert writer.close(10)
    assert writer.dropped == 1001


def test_a_stalled_output_that_is_read_again_loses_nothing_that_was_taken(pipe):
    reader, end = pipe
    fill(end)
    os.set_blocking(end, False)
    writer = LogWriter(end, capacity=100)
    for i in range(50):
        assert writer.put(b"%d\n" % i)
    assert not writer.close(0.05)
    os.read(reader, 65_536)
    assert writer.close(10)
    os.close(end)
    assert read_all(reader).lstrip(b".") == b"".join(b"%d\n" % i for i in range(50))


def test_queued_bytes_are_bounded(pipe):
    reader, end = pipe
    fill(end)
    writer = LogWriter(end, capacity=1_000_000)
    big = b"x" * (MAX_QUEUED_BYTES // 4)
    kept = sum(writer.put(big) for _ in range(20))
    assert 4 <= kept <= 5
    os.close(reader)
    assert writer.close(10)


def test_a_broken_output_only_counts(pipe):
    reader, end = pipe
    os.close(reader)
    writer = LogWriter(end)
    writer.put(b"1\n")
    writer.put(b"2\n")
    assert writer.close(10)
    assert writer.dropped == 2


def test_closing_an_idle_writer_is_immediate(pipe):
    _, end = pipe
    writer = LogWriter(end)
    assert writer.close(10)
    assert writer.close(10)
    assert not writer.put(b"x\n")
    assert writer.dropped == 1


def test_many_threads_may_put(pipe):
    reader, end = pipe
    writer = LogWriter(end, capacity=100_000)
    threads = [
        threading.Thread(target=lambda: [writer.put(b"0123456789\n") for _ in range(500)]) for _ in range(8)
    ]
    received = []
    drain = threading.Thread(target=lambda: received.append(read_all(reader)))
    for thread in (drain, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(10)
    os.close(end)
    drain.join()
    assert received[0] == b"0123456789\n" * 4000


class Nameless:
    def __str__(self):
        raise RuntimeError


def logged(pipe, *calls, level="debug"):
    reader, end = pipe
    writer = LogWriter(end, level=level, clock=lambda: 1_700_000_000.0)
    for severity, event, fields in calls:
        writer.log(severity, event, **fields)
    assert writer.close(10)
    os.close(end)
    return [json.loads(line) for line in read_all(reader).splitlines()]


def test_application_log(pipe):
    fields = {
        "number": 1,
        "share": 0.5,
        "yes": True,
        "none": None,
        "huge": 1 << 70,
        "error": OSError("refused\n"),
        "raw": b"\xff\x1b",
        "long": "x" * 5000,
        "nameless": Nameless(),
        "level": "not this one",
        "event": "nor this one",
    }
    (line,) = logged(pipe, ("warning", "connect failed", fields))
    assert line.pop("long") == "x" * 1021 + "..."
    assert line == {
        "time": "2023-11-14T22:13:20.000Z",
        "level": "warning",
        "event": "connect failed",
        "number": 1,
        "share": 0.5,
        "yes": True,
        "none": None,
        "huge": str(1 << 70),
        "error": "refused\\x0a",
        "raw": r"\xff\x1b",
        "nameless": "<Nameless>",
    }


def test_fields_are_bounded_in_number(pipe):
    (line,) = logged(pipe, ("info", "e", {f"f{i}": i for i in range(100)}))
    assert len(line) == 3 + 32


def test_levels(pipe):
    calls = [(level, level, {}) for level in ("debug", "info", "warning", "error", "odd")]
    lines = logged(pipe, *calls, level="warning")
    assert [line["event"] for line in lines] == ["warning", "error", "odd"]
    assert lines[-1]["level"] == "error"


def test_the_level_can_be_changed(pipe):
    writer = LogWriter(pipe[1])
    assert writer.level == "info"
    assert not writer.enabled("debug")
    writer.set_level("debug")
    assert writer.enabled("debug")
    with pytest.raises(ValueError, match="expected one of debug, info, warning, error"):
        writer.set_level("verbose")
    assert writer.level == "debug"
    assert writer.close(10)


def test_the_default_clock_is_unix_time(pipe):
    reader, end = pipe
    writer = LogWriter(end)
    assert writer.log("info", "now")
    assert writer.close(10)
    os.close(end)
    assert json.loads(read_all(reader))["time"] > "2024"
