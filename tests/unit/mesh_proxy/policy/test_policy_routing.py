import pytest

from mesh_api.sidecar import ConfigError
from mesh_api.traffic import (
    Match,
    PathMatch,
    PathRewrite,
    Redirect,
    Respond,
    Rewrite,
    Route,
    SourceMatch,
    ValueMatch,
    WeightedTarget,
)
from mesh_proxy.policy.matching import MAX_PARAMETERS, parameters, path_of
from mesh_proxy.policy.routing import Caller, Router

WEB = Caller("bookshop", "web", {"app": "web", "version": "v1"})
TO = (WeightedTarget(),)


def route(*matches, **fields):
    if not {"redirect", "respond"} & set(fields):
        fields.setdefault("to", TO)
    return Route(match=matches, **fields)


def taken(router, target="/", method="GET", **headers):
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    rule = router.match(method.encode(), target.encode(), fields.get)
    return None if rule is None else rule.index


def table(*routes):
    return Router(routes, WEB)


def header(name, **kind):
    return Match(headers=(ValueMatch(name=name, **kind),))


def prefix(text, **more):
    return Match(path=PathMatch(prefix=text), **more)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"),
        (b"/a/b", b"/a/b"),
        (b"/a?b/c?d", b"/a"),
        (b"http://host/a/b?c", b"/a/b"),
        (b"http://host", b"/"),
        (b"http://host?x=/y", b"/"),
        (b"HTTP://host:80/", b"/"),
        (b"*", b"*"),
        (b"//host/a", b"//host/a"),
    ],
)
def test_the_path_of_a_target(target, path):
    assert path_of(target) == path


@pytest.mark.parametrize(
    ("target", "index"),
    [
        ("/reviews", 0),
        ("/reviews/", 0),
        ("/reviews/1", 0),
        ("/reviews?x=1", 0),
        ("/reviews//1", 0),
        ("http://web/reviews/1?y", 0),
        ("/reviewsx", 1),
        ("/review", 1),
        ("/x/reviews", 1),
        ("//reviews", 1),
        ("/", 1),
        ("*", 1),
        ("/%72eviews", 1),
    ],
)
@pytest.mark.parametrize("spelling", ["/reviews", "/reviews/"])
def test_prefixes_are_whole_segments(target, index, spelling):
    assert taken(table(route(prefix(spelling)), route(prefix("/"))), target) == index


def test_the_first_match_wins_whatever_finds_it():
    every = [
        route(prefix("/a/b")),
        route(Match(path=PathMatch(exact="/a/b/c"))),
        route(Match(path=PathMatch(regex="/a/.*"))),
        route(prefix("/a")),
        route(),
    ]
    assert taken(table(*every), "/a/b/c") == 0
    assert taken(table(*every[1:]), "/a/b/c") == 0
    assert taken(table(*every[2:]), "/a/b/c") == 0
    assert taken(table(*every[::-1]), "/a/b/c") == 0
    assert taken(table(every[3], every[1]), "/a/b/c") == 0
    assert taken(table(every[1], every[3]), "/a/b") == 1
    assert taken(table(every[1]), "/a/b") is None


def test_no_routes_match_nothing():
    assert taken(table()) is None
    assert table().tcp() is None


def test_regular_expressions_match_the_whole_path():
    router = table(route(Match(path=PathMatch(regex="/v[0-9]+/x|/y"))))
    assert taken(router, "/v12/x?q=1") == 0
    assert taken(router, "/y") == 0
    assert taken(router, "/v12/xx") is None
    assert taken(router, "/z/y") is None
    assert taken(router, "/v1/x\n") is None


def test_one_of_several_matches_and_all_within_one():
    router = table(
        route(
            prefix("/a", method="GET", headers=(ValueMatch(name="x-a", exact="1"),)),
            prefix("/b", method="POST"),
        )
    )
    assert taken(router, "/a", x_a="1") == 0
    assert taken(router, "/a", x_a="2") is None
    assert taken(router, "/a", "POST", x_a="1") is None
    assert taken(router, "/a", "get", x_a="1") is None
    assert taken(router, "/b", "POST") == 0
    assert taken(router, "/b") is None


@pytest.mark.parametrize(
    ("kind", "yes", "no"),
    [
        ({"exact": "beta"}, ["beta"], [None, "", "Beta", "beta2"]),
        ({"exact": ""}, [""], [None, "x"]),
        ({"prefix": "be"}, ["be", "beta"], [None, "", "abe"]),
        ({"regex": "b.*a"}, ["ba", "beta"], [None, "", "beta2"]),
        ({"present": True}, ["", "x"], [None]),
        ({"present": False}, [None], ["", "x"]),
    ],
)
def test_headers(kind, yes, no):
    router = table(route(header("x-group", **kind)))
    for value in yes:
        assert taken(router, **({} if value is None else {"x_group": value})) == 0, value
    for value in no:
        assert taken(router, **({} if value is None else {"x_group": value})) is None, value


def test_headers_beside_each_other_keep_the_order():
    router = table(
        route(header("x-user", exact="ada")),
        route(header("x-group", exact="beta")),
        route(header("x-user", exact="bob")),
        route(header("x-user", prefix="a")),
        route(),
    )
    assert taken(router, x_user="ada", x_group="beta") == 0
    assert taken(router, x_user="bob", x_group="beta") == 1
    assert taken(router, x_user="bob") == 2
    assert taken(router, x_user="alf") == 3
    assert taken(router) == 4


def test_a_header_is_looked_up_once():
    router = table(*[route(header("x-user", regex=f"u{i}")) for i in range(20)])
    asked = []

    def read(name):
        asked.append(name)
        return b"u19"

    assert router.match(b"GET", b"/", read).index == 19
    assert asked == [b"x-user"]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        ("/?debug=1", 0),
        ("/?a=b&debug=1&debug=2", 0),
        ("/?%64ebug=%31", 0),
        ("http://web?debug=1", 0),
        ("/?debug=2&debug=1", None),
        ("/?Debug=1", None),
        ("/?debug", None),
        ("/debug=1", None),
        ("/?" + "&" * MAX_PARAMETERS + "debug=1", None),
    ],
)
def test_query_parameters(target, index):
    router = table(route(Match(query=(ValueMatch(name="debug", exact="1"),))))
    assert taken(router, target) == index


def test_parameters():
    assert parameters(b"?a=1&b&=x&a=2&c=%zz%20&d=x=y&e=+") == {
        b"a": b"1",
        b"b": b"",
        b"c": b"%zz ",
        b"d": b"x=y",
        b"e": b"+",
    }
    assert len(parameters(b"&".join(b"p%d" % i for i in range(1000)))) == MAX_PARAMETERS


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ({}, True),
        ({"namespace": "bookshop"}, True),
        ({"namespace": "other"}, False),
        ({"service_account": "web"}, True),
        ({"namespace": "bookshop", "service_account": "x"}, False),
        ({"labels": {"app": "web"}}, True),
        ({"labels": {"app": "web", "version": "v2"}}, False),
        ({"labels": {"tier": ""}}, False),
    ],
)
def test_sources(source, meant):
    router = table(route(Match(source=SourceMatch(**source))))
    assert taken(router) == (0 if meant else None)
    assert len(router.rules) == meant
    either = table(route(Match(source=SourceMatch(**source)), prefix("/a")))
    assert taken(either, "/a") == 0


def test_rules_carry_what_is_prepared():
    router = table(
        route(prefix("/r"), redirect=Redirect(scheme="https")),
        route(prefix("/a"), respond=Respond(status=204)),
        Route(
            name="canary",
            to=(WeightedTarget(subset="v1", weight=0), WeightedTarget(subset="v2", weight=3)),
            timeout_s=2.0,
        ),
    )
    moved, answered, canary = router.rules
    assert (moved.name, moved.plain, moved.targets) == ("#0", False, ())
    assert moved.redirect.answer(b"/r", b"web").fields == b"location: https://web/r\r\n"
    assert (answered.respond.status, answered.respond.text) == (204, b"")
    assert (canary.name, canary.plain, canary.index, canary.timeout_s) == ("canary", True, 2, 2.0)
    assert canary.weights.sums == (0, 3)


def test_each_prefix_of_a_rewriting_route_is_replaced():
    router = table(
        route(
            prefix("/a"),
            prefix("/b/c/"),
            prefix("/a", method="GET"),
            rewrite=Rewrite(path=PathRewrite(replace_prefix="/x")),
        )
    )
    assert [rule.index for rule in router.rules] == [0, 0]
    for target, new in ((b"/a/1?q", b"/x/1?q"), (b"/b/c/1", b"/x/1"), (b"/b/c", b"/x")):
        assert router.match(b"GET", target, {}.get).rewrite.target(target) == new


def test_tcp_takes_the_first_route_that_asks_nothing():
    router = table(
        route(prefix("/a"), name="a"),
        route(respond=Respond(status=200)),
        route(Match(source=SourceMatch(namespace="other")), name="other"),
        route(prefix("/"), name="b"),
        route(name="c"),
    )
    assert router.tcp().name == "b"
    assert table(route(prefix("/a"))).tcp() is None


@pytest.mark.parametrize(
    ("match", "path"),
    [
        (Match(path=PathMatch(regex="(")), "$.routes[1].match[0].path.regex"),
        (Match(path=PathMatch(regex=r"(a)\1")), "$.routes[1].match[0].path.regex"),
        (Match(path=PathMatch(regex="(?=a)")), "$.routes[1].match[0].path.regex"),
        (Match(path=PathMatch(regex="a" * 2000)), "$.routes[1].match[0].path.regex"),
        (Match(path=PathMatch(regex="((a{100}){100}){100}")), "$.routes[1].match[0].path.regex"),
        (Match(path=PathMatch()), "$.routes[1].match[0].path"),
        (Match(path=PathMatch(exact="/a", prefix="/b")), "$.routes[1].match[0].path"),
        (Match(path=PathMatch(prefix="a")), "$.routes[1].match[0].path"),
        (Match(headers=(ValueMatch(name="a"),)), "$.routes[1].match[0].headers[0]"),
        (Match(headers=(ValueMatch(name="a", regex="["),)), "$.routes[1].match[0].headers[0].regex"),
        (Match(query=(ValueMatch(name="a", exact="", prefix=""),)), "$.routes[1].match[0].query[0]"),
    ],
)
def test_what_cannot_be_prepared_is_refused_with_its_place(match, path):
    with pytest.raises(ConfigError) as caught:
        table(route(), route(match))
    assert caught.value.path == path


def test_hostile_requests_cost_little():
    router = table(
        route(Match(path=PathMatch(regex="(/x+x+)+y"))),
        route(Match(path=PathMatch(prefix="/a/b/c"), query=(ValueMatch(name="q", exact="1"),))),
    )
    assert taken(router, "/" + "x" * 30_000) is None
    assert taken(router, "/" * 30_000) is None
    assert taken(router, "/a/b/c" + "/" * 20_000 + "?" + "&=" * 5_000) is None
