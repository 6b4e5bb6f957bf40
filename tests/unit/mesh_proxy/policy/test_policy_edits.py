import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_api.sidecar import ConfigError
from mesh_api.traffic import Abort, HeaderEdits, PathRewrite, Redirect, Respond, Rewrite
from mesh_proxy.policy import answers, rewrite
from mesh_proxy.policy.edits import PROTECTED, Edits, field

BLOCK = b"Host: web\r\nX-A: 1\r\nx-ab: 2\r\nX-a:3 \r\n-x-a: 4\r\nother: X-A: 5\r\n"


def apply(block=BLOCK, **spec):
    return Edits("$", HeaderEdits(**spec)).apply(block)


def test_remove():
    assert apply(remove=("x-a",)) == b"Host: web\r\nx-ab: 2\r\n-x-a: 4\r\nother: X-A: 5\r\n"
    assert apply(remove=("X-A", "x-AB", "other")) == b"Host: web\r\n-x-a: 4\r\n"
    assert apply(remove=("x-none",)) == BLOCK
    assert apply(b"a: 1\r\n", remove=("a",)) == b""
    assert apply(b"", remove=("a",)) == b""


def test_set_replaces_all_and_add_replaces_none():
    assert apply(set={"X-A": "9"}) == b"Host: web\r\nx-ab: 2\r\n-x-a: 4\r\nother: X-A: 5\r\nx-a: 9\r\n"
    assert apply(add={"X-A": "9"}) == BLOCK + b"x-a: 9\r\n"
    assert apply(b"", set={"a": ""}, add={"b": " é\t"}) == b"a: \r\nb: \xc3\xa9\r\n"


def test_the_order_is_remove_set_add():
    changed = apply(
        b"a: 1\r\nb: 1\r\nc: 1\r\n", remove=("a", "b"), set={"b": "2", "c": "2"}, add={"c": "3", "a": "3"}
    )
    assert changed == b"b: 2\r\nc: 2\r\nc: 3\r\na: 3\r\n"


def test_names_with_marks_are_no_patterns():
    assert apply(b"a.b: 1\r\naxb: 1\r\n$a: 1\r\n", remove=("a.b", "$a")) == b"axb: 1\r\n"


@pytest.mark.parametrize(
    "name", ["", "a b", "a:", "a\r\nb", "é", "a\n", "x" * 257, *sorted(PROTECTED), "X-Triomesh-Error"]
)
def test_names_that_may_not_be_changed(name):
    for spec in ({"remove": (name,)}, {"set": {name: "1"}}, {"add": {name: "1"}}):
        with pytest.raises(ConfigError) as caught:
            apply(**spec)
        assert caught.value.path.startswith("$." + next(iter(spec)))


@pytest.mark.parametrize("value", ["a\r\nb: 1", "a\n", "\r", "\0", "\x7f", "x" * 8193])
def test_values_that_could_end_a_line(value):
    for part in ("set", "add"):
        with pytest.raises(ConfigError, match="expected a header value"):
            apply(**{part: {"a": value}})


VALUES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
FIELDS = st.dictionaries(st.sampled_from(["a", "B", "x-c"]), VALUES)


@given(
    block=st.lists(st.tuples(st.sampled_from(["a", "A", "b", "c"]), VALUES), max_size=5),
    set_=FIELDS,
    add=FIELDS,
)
def test_a_block_stays_a_block(block, set_, add):
    lines = b"".join(b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in block)
    after = apply(lines, set=set_, add=add, remove=("c",))
    kept = [n for n, _ in block if n.lower() not in {"c", *(name.lower() for name in set_)}]
    assert after.count(b"\r\n") == len(kept) + len(set_) + len(add) == after.count(b"\n")
    for name, value in set_.items():
        if not {name, name.lower()} & set(add):
            assert field(after, name.lower().encode()) == value.strip(" \t").encode().rstrip(b" \t")


def test_a_field_is_read():
    assert field(BLOCK, b"x-a") == b"1, 3"
    assert field(BLOCK, b"host") == b"web"
    assert field(BLOCK, b"x-none") is None
    assert field(b"a:\r\n", b"a") == b""
    assert field(b"a:\r\nb: 1\r\n", b"a") == b""


# The table of Gateway API's HTTPPathModifier, and what it leaves out.
@pytest.mark.parametrize(
    ("path", "matched", "replacement", "new"),
    [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo//evil", "/foo", "/", "/evil"),
        ("/foo//x", "/foo", "/xyz", "/xyz/x"),
        ("/foo/x//y", "/foo", "/xyz", "/xyz/x//y"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("//bar", "/", "/", "/bar"),
    ],
)
def test_replacing_a_prefix(path, matched, replacement, new):
    spec = Rewrite(path=PathRewrite(replace_prefix=replacement))
    prepared = rewrite.Rewrite("$", spec, matched)
    assert prepared.target(path.encode()) == new.encode()
    assert prepared.target(path.encode() + b"?a=/foo?b") == new.encode() + b"?a=/foo?b"
    assert prepared.target(b"http://web:80" + path.encode()) == new.encode()
    assert prepared.block(BLOCK) is BLOCK


def test_replacing_all_keeps_the_query():
    prepared = rewrite.Rewrite("$", Rewrite(path=PathRewrite(replace_full="/x")), "/")
    assert prepared.target(b"/a/b?c=d") == b"/x?c=d"
    assert prepared.target(b"http://web?c=d") == b"/x?c=d"
    assert prepared.target(b"*") == b"*"


def test_another_host():
    prepared = rewrite.Rewrite("$", Rewrite(host="reviews:9080"), "/")
    assert prepared.block(b"a: 1\r\nHOST: web\r\nb: 2\r\n") == b"host: reviews:9080\r\na: 1\r\nb: 2\r\n"
    assert prepared.block(b"") == b"host: reviews:9080\r\n"
    assert prepared.target(b"http://web/a?b") == b"/a?b"
    assert prepared.host == b"reviews:9080"


@pytest.mark.parametrize(
    ("spec", "target", "host", "location"),
    [
        ({"scheme": "https"}, "/a?b", "web", "https://web/a?b"),
        ({"scheme": "https"}, "/a", "web:8080", "https://web/a"),
        ({"scheme": "https", "port": 443}, "/a", "web", "https://web/a"),
        ({"scheme": "https", "port": 8443}, "/a", "web:80", "https://web:8443/a"),
        ({"scheme": "http", "port": 443}, "/a", "web", "http://web:443/a"),
        ({"host": "example.com"}, "/a", "web", "http://example.com/a"),
        ({"host": "example.com"}, "/a", "web:8080", "http://example.com:8080/a"),
        ({"host": "example.com"}, "/a", "web:80", "http://example.com/a"),
        ({"host": "2001:db8::1", "port": 81}, "/", "web", "http://[2001:db8::1]:81/"),
        ({"port": 8080}, "/a", "[::1]:80", "http://[::1]:8080/a"),
        ({"port": 80}, "/a", "[::1]", "http://[::1]/a"),
        ({"status": 302}, "/a", "web", "http://web/a"),
        ({"path": PathRewrite(replace_prefix="/new")}, "/old/1?x", "web", "http://web/new/1?x"),
        ({"path": PathRewrite(replace_full="/n")}, "http://web/old?x", "web", "http://web/n?x"),
        ({"path": PathRewrite(replace_prefix="/")}, "/old//evil.example", "", "/evil.example"),
        ({"host": "h"}, "*", "web", "http://h/"),
        ({"status": 308}, "//evil.example/a", "", "/evil.example/a"),
    ],
)
def test_redirects(spec, target, host, location):
    answer = rewrite.Redirect("$", Redirect(**spec), "/old").answer(target.encode(), host.encode())
    assert answer.fields == b"location: %s\r\n" % location.encode()
    assert (answer.status, answer.text) == (spec.get("status", 301), b"")


def test_a_redirect_keeps_the_scheme_of_the_request():
    prepared = rewrite.Redirect("$", Redirect(host="h"), "/")
    assert prepared.location(b"/", b"web:443", b"https") == b"https://h/"
    assert prepared.location(b"/", b"web:443", b"http") == b"http://h:443/"


@pytest.mark.parametrize(
    ("make", "spec", "path"),
    [
        (rewrite.Redirect, Redirect(scheme="ftp"), "$.scheme"),
        (rewrite.Redirect, Redirect(host="a\r\nb"), "$.host"),
        (rewrite.Redirect, Redirect(host="a/b"), "$.host"),
        (rewrite.Redirect, Redirect(port=70000), "$.port"),
        (rewrite.Redirect, Redirect(status=304), "$.status"),
        (rewrite.Redirect, Redirect(path=PathRewrite()), "$.path"),
        (rewrite.Rewrite, Rewrite(host="a b"), "$.host"),
        (rewrite.Rewrite, Rewrite(host="a@b"), "$.host"),
        (rewrite.Rewrite, Rewrite(path=PathRewrite(replace_full="x")), "$.path"),
        (rewrite.Rewrite, Rewrite(path=PathRewrite(replace_full="/a?b")), "$.path"),
        (rewrite.Rewrite, Rewrite(path=PathRewrite(replace_full="/a b")), "$.path"),
        (rewrite.Rewrite, Rewrite(path=PathRewrite(replace_prefix="/a\r\nx: y")), "$.path"),
        (rewrite.Rewrite, Rewrite(path=PathRewrite(replace_prefix="/a", replace_full="/b")), "$.path"),
    ],
)
def test_what_cannot_go_into_a_line_is_refused(make, spec, path):
    with pytest.raises(ConfigError) as caught:
        make("$", spec, "/")
    assert caught.value.path == path


def test_answers():
    teapot = answers.respond(Respond(status=418, body="té"))
    assert (teapot.status, teapot.content_type, teapot.text) == (418, answers.TEXT, b"t\xc3\xa9")
    assert answers.respond(Respond(status=204)).content_type == b""
    failed = answers.abort(Abort(percent=1, status=500))
    assert (failed.status, failed.fields, failed.text) == (500, b"", b"fault injected by policy\n")
    grpc = answers.abort(Abort(percent=1, grpc_status=14))
    assert (grpc.status, grpc.content_type, grpc.text) == (200, answers.GRPC, b"")
    assert grpc.fields == b"grpc-status: 14\r\ngrpc-message: fault injected by policy\r\n"
