"""Whatever bytes arrive, the protobuf decoder answers with an object or an ApiError."""

from hypothesis import example, given
from hypothesis import strategies as st

from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.protobuf import decode
from tests.support.local_protobuf import body, message

KINDS = [
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "Event"),
    ("apps/v1", "Deployment"),
    ("coordination.k8s.io/v1", "Lease"),
    ("authentication.k8s.io/v1", "TokenReview"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
]
LEAVES = st.one_of(
    st.integers(0, 1 << 64),
    st.text(max_size=5),
    st.binary(max_size=12),
)
FIELDS = st.recursive(
    st.lists(st.tuples(st.integers(1, 20), LEAVES), max_size=4),
    lambda inner: st.lists(st.tuples(st.integers(1, 20), st.one_of(LEAVES, inner)), max_size=4),
    max_leaves=25,
)
POD = body(
    "v1",
    "Pod",
    (1, [(1, "p"), (8, [(1, 1767225600)]), (11, [(1, "a"), (2, "b")])]),
    (2, [(2, [(1, "c"), (6, [(1, "http"), (3, 80)]), (10, [(1, [(2, [(2, [(1, 1), (3, "http")])])])])])]),
)


def outcome(data: bytes) -> int:
    """The HTTP status that the body leads to; any other exception is a failure."""
    try:
        return 200 if decode(data)["kind"] else 0
    except ApiError as error:
        return error.code


def check(data: bytes) -> None:
    assert outcome(data) in (200, 400)


@given(st.binary(max_size=200))
@example(b"")
@example(b"k8s\x00")
def test_arbitrary_bytes(data):
    check(data)
    check(b"k8s\x00" + data)


@given(st.sampled_from(KINDS), FIELDS)
def test_arbitrary_messages(kind, fields):
    check(body(*kind, *fields))


@given(st.sampled_from(KINDS), st.binary(max_size=100))
def test_arbitrary_objects(kind, data):
    check(b"k8s\x00" + message((1, [(1, kind[0]), (2, kind[1])]), (2, data)))


@given(st.data())
def test_cuts_and_changed_bytes(data):
    changed = bytearray(POD)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(4, len(POD) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(changed[: data.draw(st.integers(0, len(POD)))]))
    check(bytes(changed))


def test_the_unchanged_pod_decodes():
    assert decode(POD)["spec"]["containers"][0]["livenessProbe"] == {"httpGet": {"port": "http"}}
