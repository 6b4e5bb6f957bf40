"""The indexed router gives what trying all routes one after another gives."""

import re
from urllib.parse import unquote_to_bytes

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_api.traffic import Match, PathMatch, Route, SourceMatch, ValueMatch, WeightedTarget
from mesh_proxy.policy.routing import Caller, Router

SEGMENTS = st.sampled_from(["", "a", "b", "ab", "%61"])
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
NAMES = st.sampled_from(["x-a", "x-b"])
VALUES = st.sampled_from(["", "1", "2", "12"])
REGEXES = st.sampled_from(["1.*", "/a.*", ".*b", "/[ab]*", "[^/]*", ""])


@st.composite
def value_matches(draw):
    kind = draw(st.sampled_from(["exact", "prefix", "regex", "present"]))
    value = draw({"regex": REGEXES, "present": st.booleans()}.get(kind, VALUES))
    return ValueMatch(name=draw(NAMES), **{kind: value})


CONDITIONS = st.lists(value_matches(), max_size=2).map(tuple)
PATH_MATCHES = st.one_of(
    st.none(),
    PATHS.map(lambda text: PathMatch(exact=text)),
    PATHS.map(lambda text: PathMatch(prefix=text)),
    REGEXES.filter(bool).map(lambda text: PathMatch(regex=text)),
)
SOURCES = st.one_of(st.none(), st.builds(SourceMatch, namespace=st.sampled_from(["", "n", "m"])))
MATCHES = st.builds(
    Match,
    path=PATH_MATCHES,
    method=st.sampled_from(["", "", "GET", "POST"]),
    headers=CONDITIONS,
    query=CONDITIONS,
    source=SOURCES,
)
ROUTES = st.lists(
    st.lists(MATCHES, max_size=3).map(lambda found: Route(match=tuple(found), to=(WeightedTarget(),))),
    max_size=8,
)
QUERIES = st.lists(st.tuples(NAMES, VALUES), max_size=3)
HEADERS = st.dictionaries(NAMES, VALUES)
CALLER = Caller("n", "s", {})


def value_holds(want, value):
    if value is None:
        return want.present is False
    if want.exact is not None:
        return value == want.exact
    if want.prefix is not None:
        return value.startswith(want.prefix)
    if want.regex is not None:
        return re.fullmatch(want.regex, value) is not None
    return want.present


def path_holds(want, path):
    if want is None:
        return True
    if want.exact:
        return path == want.exact
    if want.prefix:
        whole = want.prefix.rstrip("/")
        return path == whole or path.startswith(whole + "/") or not whole
    return re.fullmatch(want.regex, path) is not None


def holds(want, method, path, headers, query):
    return (
        (want.source is None or want.source.namespace in ("", CALLER.namespace))
        and want.method in ("", method)
        and path_holds(want.path, path)
        and all(value_holds(condition, headers.get(condition.name)) for condition in want.headers)
        and all(value_holds(condition, query.get(condition.name)) for condition in want.query)
    )


@settings(max_examples=400)
@given(
    routes=ROUTES,
    path=st.one_of(PATHS, st.just("*")),
    method=st.sampled_from(["GET", "POST", "get"]),
    headers=HEADERS,
    query=QUERIES,
    absolute=st.booleans(),
)
def test_the_same_route_as_one_after_another(routes, path, method, headers, query, absolute):
    if path == "*":
        query = []  # the asterisk stands alone
    first = {}
    for name, value in query:
        first.setdefault(name, unquote_to_bytes(value).decode())
    expected = None
    for index, route in enumerate(routes):
        wanted = route.match or (Match(),)
        if any(holds(match, method, path, headers, first) for match in wanted):
            expected = index
            break
    target = path + ("?" + "&".join(f"{name}={value}" for name, value in query) if query else "")
    if absolute and path != "*":
        target = "http://web.shop:80" + target
    router = Router(routes, CALLER)
    found = router.match(
        method.encode(),
        target.encode(),
        lambda name: headers[name.decode()].encode() if name.decode() in headers else None,
    )
    assert (None if found is None else found.index) == expected
