"""What requests of HTTP/2 may not say, and the line that tells who calls."""

import pytest

from mesh_proxy.http.forwarded import caller_line, without_claims

REST = b"host: a\r\nx-forwarded-for: 1\r\nx_api_key: 2\r\nx-request-id: 3\r\nx-triomesh-a: 4\r\n"


@pytest.mark.parametrize(
    "name",
    [
        b"x-forwarded-client-cert",
        b"X-Forwarded-Client-Cert",
        b"x_forwarded_client_cert",
        b"x-forwarded_client-cert",
        b"x_request_id",
        b"x-request_id",
        b"x_triomesh_error",
        b"x-triomesh_error",
        b"content_length",
        b"Transfer_Encoding",
    ],
)
def test_claims_are_removed_wherever_they_stand(name):
    claim = name + b": x; y\r\n"
    assert without_claims(claim + REST) == REST
    assert without_claims(REST + claim) == REST
    assert without_claims(claim + REST + claim) == REST
    assert without_claims(claim) == b""


def test_a_block_without_claims_is_passed_on_itself():
    assert without_claims(REST) is REST
    assert without_claims(b"") == b""
    assert without_claims(b"a: x-forwarded-client-cert: b\r\n") == b"a: x-forwarded-client-cert: b\r\n"


def test_the_line_of_a_caller():
    me, caller = "spiffe://d/ns/a/sa/b", "spiffe://d/ns/c/sa/d"
    assert caller_line(caller, me) == f"x-forwarded-client-cert: By={me};URI={caller}\r\n".encode()
    assert caller_line("", me) == b""
