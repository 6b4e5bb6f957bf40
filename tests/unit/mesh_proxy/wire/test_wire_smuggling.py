"""The corpus of requests and responses that parsers disagree about, by the parsers alone."""

import pytest

from mesh_proxy.wire.dechunk import Dechunker
from mesh_proxy.wire.http1 import CHUNKED, HttpError
from tests.support.http1_corpus import NEXT, WAYS, corpus, raw_bytes, read_request, read_response


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("expected", "message"), corpus("requests_refused.txt"))
def test_refused_requests(expected, message, way):
    with pytest.raises(HttpError) as caught:
        read_request(way(message))
    assert f"{caught.value.status} {caught.value.reason}" == expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("expected", "message"), corpus("responses_refused.txt"))
def test_refused_responses(expected, message, way):
    with pytest.raises(HttpError) as caught:
        read_response(way(message))
    assert caught.value.reason == expected.partition(" ")[2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("expected", "message"), corpus("requests_accepted.txt"))
def test_accepted_requests(expected, message, way):
    read = read_request(way(message))
    payload = Dechunker().feed(read.body) if read.head.framing == CHUNKED else read.body
    assert payload == raw_bytes(expected)
    assert read.rest in (b"", NEXT)
    again = read_request([read.forwarded() + NEXT])
    assert (again.head.framing, again.body, again.target) == (read.head.framing, read.body, read.target)
    assert again.rest == NEXT
    assert again.forwarded() == read.forwarded()
