import ast
from pathlib import Path

import pytest

from mesh_proxy.wire.http1 import (
    CHUNKED,
    DEFAULT_LIMITS,
    LENGTH,
    NO_BODY,
    UNTIL_CLOSE,
    HttpError,
    Limits,
    head_end,
    parse_request,
    parse_response,
    skip_leading_crlf,
)

CORPUS = Path(__file__).parents[3] / "corpus" / "wire"


def corpus(name):
    for line in (CORPUS / name).read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            expected, _, escaped = line.partition("\t")
            quote = '"""' if "'" in escaped else "'"
            yield expected, ast.literal_eval(f"b{quote}{escaped}{quote}")


def request(fields=b"", line=b"GET / HTTP/1.1", limits=DEFAULT_LIMITS):
    if b"ost:" not in fields:
        fields = b"Host: a\r\n" + fields
    return parse_request(line + b"\r\n" + fields + b"\r\n", limits)


def response(fields=b"", line=b"HTTP/1.1 200 OK", method=b"GET", limits=DEFAULT_LIMITS):
    return parse_response(line + b"\r\n" + fields + b"\r\n", method, limits)


class TestRequest:
    def test_everything_that_is_read_from_a_plain_request(self):
        head = b"GET /a?b=%20 HTTP/1.1\r\nHost: shop:80\r\nX-Request-ID:  r1 \t\r\nAccept: */*\r\n\r\n"
        got = parse_request(head, DEFAULT_LIMITS)
        assert (got.method, got.target, got.minor) == (b"GET", b"/a?b=%20", 1)
        assert got.block == b"Host: shop:80\r\nX-Request-ID:  r1 \t\r\nAccept: */*\r\n"
        assert (got.framing, got.length, got.keep_alive, got.expect_continue) == (NO_BODY, 0, True, False)
        assert (got.host, got.request_id) == (b"shop:80", b"r1")
        assert got.special == [(b"host", b"shop:80"), (b"x-request-id", b"r1")]
        assert not got.hop
        assert got.forward_block() is got.block
        assert "GET" in repr(got)

    @pytest.mark.parametrize(("expected", "head"), list(corpus("requests_refused.txt")))
    def test_refused(self, expected, head):
        with pytest.raises(HttpError) as caught:
            parse_request(head, DEFAULT_LIMITS)
        assert f"{caught.value.status} {caught.value.reason}" == expected
        assert len(str(caught.value)) > 10

    @pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"M-SEARCH * HTTP/1.1", b"CONNECT a:443 HTTP/1.1"])
    def test_request_lines_that_are_fine(self, line):
        assert request(line=line).method == line.split()[0]

    @pytest.mark.parametrize(
        "host", [b"", b"a", b"A.b-c_d~e:80", b"[::1]", b"[::1]:8080", b"a:", b"%41", b"10.0.0.1"]
    )
    def test_hosts_that_are_fine(self, host):
        assert request(b"Host: " + host + b"\r\n").host == host

    def test_http10_may_leave_the_host_out_and_closes_unless_asked(self):
        got = parse_request(b"GET / HTTP/1.0\r\n\r\n", DEFAULT_LIMITS)
        assert (got.minor, got.host, got.keep_alive, got.block) == (0, b"", False, b"")
        assert parse_request(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", DEFAULT_LIMITS).keep_alive

    @pytest.mark.parametrize(
        ("value", "minor", "keep"),
        [
            (b"close", 1, False),
            (b"Close", 1, False),
            (b"keep-alive", 1, True),
            (b"x, close", 1, False),
            (b"keep-alive, close", 1, False),
            (b"keep-alive, close", 0, False),
            (b"x , Keep-Alive", 0, True),
            (b"", 1, True),
            (b", ,", 1, True),
            (b"closed", 1, True),
        ],
    )
    def test_keep_alive(self, value, minor, keep):
        line = b"GET / HTTP/1.%d" % minor
        assert request(b"Connection: " + value + b"\r\n", line).keep_alive is keep

    def test_close_wins_over_several_connection_headers(self):
        assert not request(b"Connection: close\r\nConnection: keep-alive\r\n").keep_alive

    def test_framing(self):
        got = request(b"Content-Length: 000000000000000005 \r\n")
        assert (got.framing, got.length) == (LENGTH, 5)
        got = request(b"content-LENGTH:0\r\n")
        assert (got.framing, got.length) == (NO_BODY, 0)
        got = request(b"Transfer-Encoding:\tChunked\t\r\n")
        assert (got.framing, got.length) == (CHUNKED, 0)
        got = request(b"Content-Length: 999999999999999999\r\n")
        assert got.length == 10**18 - 1

    def test_expect_is_only_for_http11(self):
        assert request(b"Expect: 100-Continue\r\nContent-Length: 1\r\n").expect_continue
        assert not request(b"Expect: 100-continue\r\n", b"GET / HTTP/1.0").expect_continue

    def test_names_that_only_resemble_special_ones_are_left_alone(self):
        fields = (
            b"Hostname: x\r\nX-Host: y\r\nContent-Lengths: 9\r\nXContent-Length: 9\r\nTex: 1\r\n"
            b"Connections: a\r\n"
            b"X-Triomesh: 1\r\nXX-Triomesh-A: 1\r\nUpgrade-Insecure-Requests: 1\r\n"
            b"api_key: 1\r\n"
        )
        got = request(b"Host: a\r\n" + fields)
        assert got.special == [(b"host", b"a")]
        assert got.framing == NO_BODY
        assert got.forward_block() == b"Host: a\r\n" + fields

    def test_a_target_cannot_pose_as_a_header(self):
        assert request(line=b"GET /host:connection:close HTTP/1.1").special == [(b"host", b"a")]

    def test_forward_block_drops_hop_by_hop_and_nominated_and_mesh_lines_only(self):
        fields = (
            b"CONNECTION: close, X-Gone\r\nHost: a\r\nTE: trailers\r\nx-One: 1\r\nx-gone: 2\r\n"
            b"Keep-Alive: 5\r\nX-Two:  2 \r\n"
            b"X-Triomesh-Error: NR\r\nx-triomesh-: y\r\nTrailer: z\r\nProxy-Connection: x\r\n"
            b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\nX-Gone: 3\r\nX-GoneNot: 4\r\n"
            b"Transfer-Encoding: chunked\r\n"
        )
        got = request(fields)
        assert got.hop
        assert got.block == fields
        assert got.forward_block() == (
            b"Host: a\r\nx-One: 1\r\nX-Two:  2 \r\nTrailer: z\r\nX-GoneNot: 4\r\n"
            b"Transfer-Encoding: chunked\r\nconnection: te\r\nte: trailers\r\n"
        )
        assert got.nominated == {b"x-gone"}

    @pytest.mark.parametrize(
        ("te", "said"), [(b"trailers", True), (b"gzip;q=1, Trailers", True), (b"x-trailers", False)]
    )
    def test_te_is_told_anew_as_far_as_it_is_true(self, te, said):
        got = request(b"Host: a\r\nTE: " + te + b"\r\n")
        assert got.forward_block() == b"Host: a\r\n" + b"connection: te\r\nte: trailers\r\n" * said

    @pytest.mark.parametrize(
        "name",
        [
            b"x-forwarded-client-cert",
            b"X-Forwarded-Client-Cert",
            b"x_forwarded_client_cert",
            b"X-Forwarded_Client-CERT",
            b"x_request_id",
            b"X-Request_ID",
            b"x_triomesh_error",
            b"X-Triomesh_a",
        ],
    )
    def test_what_a_caller_may_not_say_goes_no_further(self, name):
        got = request(b"Host: a\r\n" + name + b": x\r\nx-forwarded-for: 1\r\n")
        assert got.request_id == b""
        assert got.forward_block() == b"Host: a\r\nx-forwarded-for: 1\r\n"

    @pytest.mark.parametrize("name", [b"content_length", b"Transfer_Encoding"])
    def test_framing_fields_with_an_underscore(self, name):
        with pytest.raises(HttpError) as caught:
            request(b"Host: a\r\n" + name + b": 5\r\n")
        assert (caught.value.status, caught.value.reason) == (400, "underscore-header")

    def test_forward_block_when_every_line_goes(self):
        head = b"GET / HTTP/1.0\r\nConnection: close\r\nTE: x\r\n\r\n"
        assert parse_request(head, DEFAULT_LIMITS).forward_block() == b""

    def test_the_first_request_id_counts(self):
        assert request(b"x-request-id:\r\nX-Request-Id: a\r\nx-request-id: b\r\n").request_id == b"a"

    def test_limits(self):
        limits = Limits(head_bytes=200, line_bytes=40, header_count=3)
        assert request(b"A: b\r\nC: d\r\n", limits=limits)
        for line, fields, status, reason in [
            (b"GET / HTTP/1.1", b"A: b\r\nC: d\r\nE: f\r\n", 431, "too-many-headers"),
            (b"GET /%s HTTP/1.1" % (b"x" * 40), b"", 414, "first-line-too-long"),
            (b"GET / HTTP/1.1", b"A: " + b"x" * 40 + b"\r\n", 431, "header-too-long"),
            (b"GET / HTTP/1.1", b"A: b\r\n" * 40, 431, "head-too-large"),
        ]:
            with pytest.raises(HttpError) as caught:
                request(fields, line, limits)
            assert (caught.value.status, caught.value.reason) == (status, reason)

    def test_header_count_is_exact_for_the_shortest_lines(self):
        for count, fine in [(199, True), (200, False)]:
            head = b"GET / HTTP/1.1\r\nHost:\r\n" + b"a:\r\n" * count + b"\r\n"
            if fine:
                assert parse_request(head, DEFAULT_LIMITS).host == b""
            else:
                with pytest.raises(HttpError, match="200 header lines"):
                    parse_request(head, DEFAULT_LIMITS)

    @pytest.mark.parametrize(
        "head", [b"", b"\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nx"]
    )
    def test_not_a_whole_head(self, head):
        with pytest.raises(HttpError) as caught:
            parse_request(head, DEFAULT_LIMITS)
        assert caught.value.status == 400

    def test_an_empty_line_inside_what_was_called_a_head(self):
        with pytest.raises(HttpError) as caught:
            parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n", DEFAULT_LIMITS)
        assert caught.value.reason == "early-empty-line"


class TestResponse:
    def test_everything_that_is_read_from_a_plain_response(self):
        got = response(b"Content-Length: 5\r\nServer: x\r\n")
        assert (got.status, got.minor, got.reason, got.line) == (200, 1, b"OK", b"HTTP/1.1 200 OK")
        assert (got.framing, got.length, got.keep_alive) == (LENGTH, 5, True)
        assert got.block == b"Content-Length: 5\r\nServer: x\r\n"
        assert got.special == [(b"content-length", b"5")]
        assert got.forward_block(False) is got.block
        assert got.mesh_error == b""
        assert "200" in repr(got)

    @pytest.mark.parametrize(("expected", "head"), list(corpus("responses_refused.txt")))
    def test_refused(self, expected, head):
        with pytest.raises(HttpError) as caught:
            parse_response(head, b"GET", DEFAULT_LIMITS)
        assert (caught.value.status, caught.value.reason) == (502, expected)

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"HTTP/1.1 200 ", b""),
            (b"HTTP/1.1 200", b""),
            (b"HTTP/1.1 404 Not  Found ", b"Not  Found "),
            (b"HTTP/1.0 999 \xe9\t", b"\xe9\t"),
        ],
    )
    def test_status_lines_that_are_fine(self, line, reason):
        got = response(b"A: b\r\n", line)
        assert (got.line, got.reason, got.block) == (line, reason, b"A: b\r\n")

    @pytest.mark.parametrize(
        ("line", "fields", "method", "framing", "length", "keep"),
        [
            (b"HTTP/1.1 200 OK", b"", b"GET", UNTIL_CLOSE, 0, False),
            (b"HTTP/1.1 200 OK", b"Transfer-Encoding: CHUNKED\r\n", b"GET", CHUNKED, 0, True),
            (b"HTTP/1.1 200 OK", b"Content-Length: 0\r\n", b"GET", NO_BODY, 0, True),
            (b"HTTP/1.1 200 OK", b"Content-Length: 7\r\n", b"HEAD", NO_BODY, 0, True),
            (b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked\r\n", b"HEAD", NO_BODY, 0, True),
            (b"HTTP/1.1 200 OK", b"", b"HEAD", NO_BODY, 0, True),
            (b"HTTP/1.1 304 Not Modified", b"Content-Length: 7\r\n", b"GET", NO_BODY, 0, True),
            (b"HTTP/1.1 204 No Content", b"Content-Length: 0\r\n", b"GET", NO_BODY, 0, True),
            (b"HTTP/1.1 204 No Content", b"", b"GET", NO_BODY, 0, True),
            (b"HTTP/1.1 100 Continue", b"", b"POST", NO_BODY, 0, True),
            (b"HTTP/1.1 101 Switching", b"Upgrade: websocket\r\n", b"GET", NO_BODY, 0, True),
            (b"HTTP/1.1 200 OK", b"Content-Length: 7\r\n", b"CONNECT", NO_BODY, 0, False),
            (b"HTTP/1.1 407 No", b"Content-Length: 7\r\n", b"CONNECT", LENGTH, 7, True),
            (b"HTTP/1.0 200 OK", b"Content-Length: 7\r\n", b"GET", LENGTH, 7, False),
            (b"HTTP/1.0 200 OK", b"Content-Length: 7\r\nConnection: keep-alive\r\n", b"GET", LENGTH, 7, True),
            (b"HTTP/1.0 200 OK", b"Connection: keep-alive\r\n", b"GET", UNTIL_CLOSE, 0, False),
            (b"HTTP/1.1 200 OK", b"Content-Length: 7\r\nConnection: a, CLOSE\r\n", b"GET", LENGTH, 7, False),
        ],
    )
    def test_framing(self, line, fields, method, framing, length, keep):
        got = response(fields, line, method)
        assert (got.framing, got.length, got.keep_alive) == (framing, length, keep)

    def test_forward_block_and_the_mesh_error(self):
        fields = (
            b"Connection: x-a\r\nX-Triomesh-Error: UF\r\nx-triomesh-peer: p\r\nX-A: 1\r\nX-B: 2\r\n"
            b"x-triomesh-errors: z\r\nContent-Length: 3\r\n"
        )
        got = response(fields)
        assert got.mesh_error == b"UF"
        assert got.forward_block(False) == b"X-B: 2\r\nContent-Length: 3\r\n"
        assert got.forward_block(True) == b"X-Triomesh-Error: UF\r\nX-B: 2\r\nContent-Length: 3\r\n"

    def test_limits(self):
        limits = Limits(head_bytes=200, line_bytes=40, header_count=3)
        for line, fields, reason in [
            (b"HTTP/1.1 200 OK", b"A: b\r\n" * 4, "too-many-headers"),
            (b"HTTP/1.1 200 " + b"x" * 40, b"", "first-line-too-long"),
            (b"HTTP/1.1 200 OK", b"A: " + b"x" * 40 + b"\r\n", "header-too-long"),
            (b"HTTP/1.1 200 OK", b"A: b\r\n" * 40, "head-too-large"),
        ]:
            with pytest.raises(HttpError) as caught:
                response(fields, line, limits=limits)
            assert (caught.value.status, caught.value.reason) == (502, reason)


class TestHeadEnd:
    HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

    @pytest.mark.parametrize("kind", [bytes, bytearray])
    def test_found_whole_and_resumed_from_every_cut(self, kind):
        data = kind(self.HEAD + b"\0\nbody")
        assert head_end(data, 0, DEFAULT_LIMITS) == len(self.HEAD)
        for cut in range(len(self.HEAD)):
            assert head_end(data[:cut], 0, DEFAULT_LIMITS) == -1
            assert head_end(data, max(0, cut - 3), DEFAULT_LIMITS) == len(self.HEAD)
            for second in range(cut, len(self.HEAD)):
                assert head_end(data[:second], max(0, cut - 3), DEFAULT_LIMITS) == -1

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"GET /\n", "bare-lf"),
            (b"\n", "bare-lf"),
            (b"GET /\rx", "bare-cr"),
            (b"\r\r", "bare-cr"),
            (b"GET / HTTP/1.1\r\nA: b\n", "bare-lf"),
            (b"GET\0", "nul"),
            (b"\x16", "control-char"),
            (b"GET / HTTP/1.1\r\nA: \x7f", "control-char"),
        ],
    )
    def test_hopeless_heads_are_refused_at_once(self, data, reason):
        for start in range(len(data)):
            with pytest.raises(HttpError) as caught:
                head_end(data, max(0, start - 3), DEFAULT_LIMITS)
            assert (caught.value.status, caught.value.reason) == (400, reason)
        assert head_end(data[:-1], 0, DEFAULT_LIMITS) == -1

    def test_sizes(self):
        limits = Limits(head_bytes=100, line_bytes=50)
        first = b"GET /" + b"x" * 36 + b" HTTP/1.1"
        assert len(first) == 50
        assert head_end(first + b"\r\n", 0, limits) == -1
        assert head_end(first + b"\r", 0, limits) == -1
        for whole in (first + b"x\r\n", first + b"xx", first + b"x" * 40):
            with pytest.raises(HttpError) as caught:
                head_end(whole, 0, limits)
            assert (caught.value.status, caught.value.reason) == (414, "first-line-too-long")
        sizes = []
        for size in range(1, 100):
            try:
                head_end(b"y" * size, max(0, size - 4), limits)
            except HttpError:
                sizes.append(size)
        assert sizes == [52, 53, 54, 55, 56]
        assert head_end(first + b"\r\n" + b"a" * 44 + b"\r\n\r\n", 0, limits) == 100
        for data in (first + b"\r\n" + b"a" * 45 + b"\r\n\r\n", first + b"\r\n" + b"a" * 48):
            with pytest.raises(HttpError) as caught:
                head_end(data, 0, limits)
            assert (caught.value.status, caught.value.reason) == (431, "head-too-large")

    def test_one_leading_empty_line_is_forgiven(self):
        assert skip_leading_crlf(b"\r\nGET") == 2
        assert skip_leading_crlf(bytearray(b"\r\n\r\n")) == 2
        assert skip_leading_crlf(b"GET\r\n") == skip_leading_crlf(b"") == skip_leading_crlf(b"\r") == 0
