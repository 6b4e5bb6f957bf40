"""Whatever JSON arrives, custom resources and their definitions are judged, never crashed on."""

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_local.kinds.crd import CUSTOM_RESOURCE_DEFINITION as DEFINITION
from mesh_local.kinds.crd import crd_status
from mesh_local.kinds.custom import compile_crd
from mesh_local.machinery import schema
from mesh_local.machinery.errors import ApiError, invalid
from mesh_local.machinery.objects import copy
from tests.support.local_crd import box_crd, crd_with

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
)
BOX_KEYS = st.sampled_from(
    [
        "mode",
        "host",
        "size",
        "ratio",
        "when",
        "tags",
        "port",
        "free",
        "labels",
        "one",
        "parts",
        "name",
        "a",
        "zz",
    ]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(BOX_KEYS, inner, max_size=4)),
    max_leaves=12,
)
TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null", "odd"])
WORDS = st.sampled_from(["a", "b", "name", "^a", "(", "date-time", "int32", "map", "set", "atomic"])
RULES = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(
            ["true", "self == oldSelf", "self.a > 1", "self.all(x, x > 1)", "size(self) < 2", "(", ""]
        )
    }
)
KEYWORDS = {
    "type": TYPES,
    "format": WORDS,
    "pattern": WORDS,
    "nullable": st.booleans(),
    "minimum": st.floats(-5, 5),
    "maximum": st.floats(-5, 5),
    "multipleOf": st.floats(-1, 3),
    "minLength": st.integers(-1, 3),
    "maxItems": st.integers(-1, 3),
    "maxProperties": st.integers(0, 3),
    "required": st.lists(WORDS, max_size=2),
    "enum": st.lists(SCALARS, max_size=3),
    "default": JSON,
    "x-kubernetes-list-type": WORDS,
    "x-kubernetes-list-map-keys": st.lists(WORDS, max_size=2),
    "x-kubernetes-int-or-string": st.booleans(),
    "x-kubernetes-embedded-resource": st.booleans(),
    "x-kubernetes-preserve-unknown-fields": st.booleans(),
    "x-kubernetes-validations": st.lists(RULES, max_size=2),
}
SCHEMAS = st.recursive(
    st.fixed_dictionaries({}, optional=KEYWORDS),
    lambda inner: st.fixed_dictionaries(
        {},
        optional=KEYWORDS
        | {
            "properties": st.dictionaries(WORDS, inner, max_size=3),
            "items": st.one_of(inner, st.lists(inner, max_size=2), st.integers()),
            "additionalProperties": st.one_of(inner, st.booleans(), st.text()),
            "anyOf": st.lists(inner, max_size=2),
            "oneOf": st.lists(inner, max_size=2),
            "not": inner,
        },
    ),
    max_leaves=8,
)
LEAVES = st.sampled_from(
    [
        {"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^[a-z]"},
        {"type": "string", "format": "date-time", "nullable": True},
        {"type": "string", "enum": ["a", "b"], "default": "a"},
        {
            "type": "string",
            "format": "duration",
            "x-kubernetes-validations": [{"rule": "string(self) != '1s'"}],
        },
        {"type": "integer", "default": 1, "x-kubernetes-validations": [{"rule": "self + 1 > 0"}]},
        {"type": "integer", "format": "int32", "minimum": 0},
        {"type": "number", "multipleOf": 0.5, "x-kubernetes-validations": [{"rule": "self > 0.5"}]},
        {"type": "boolean", "not": {"enum": [True]}},
        {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        {
            "type": "object",
            "x-kubernetes-embedded-resource": True,
            "x-kubernetes-preserve-unknown-fields": True,
        },
    ]
)


def kept(kind, rule, **more):
    return st.fixed_dictionaries(
        {"type": st.just(kind), "x-kubernetes-validations": st.just([{"rule": rule}])}
        | {k.replace("_", "-"): v for k, v in more.items()}
    )


def nested(inner):
    fields = st.dictionaries(BOX_KEYS, inner, max_size=3)
    return st.one_of(
        kept("object", "self == self", properties=fields, required=st.lists(BOX_KEYS, max_size=1)),
        kept("object", "self.all(k, size(k) < 4)", additionalProperties=inner, maxProperties=st.just(2)),
        kept("array", "size(self) < 3", items=inner, x_kubernetes_list_type=st.just("atomic")),
    )


SOUND = st.recursive(LEAVES, nested, max_leaves=6)


def compiled(crd):
    """The first kind of a definition, or None where it is refused."""
    try:
        crd = schema.decode(DEFINITION.definition, crd, kind=DEFINITION.kind, version="v1").object
        DEFINITION.default(crd)
    except ApiError as error:
        if error.code != 400:
            raise
        return None
    DEFINITION.prepare_create(crd)
    if errors := DEFINITION.validate(crd):
        assert invalid("CustomResourceDefinition", DEFINITION.group, "x", errors).code == 422
        return None
    crd["status"] = crd_status(crd, NOW)
    return compile_crd(crd)[0]


BOX = compiled(box_crd())


def exercise(kind, obj, old):
    for value in (obj, old):
        kind.prune(value)
        assert kind.prune(value) == []
        kind.default(value)
        filled = copy(value)
        kind.default(value)
        assert value == filled
    errors = kind.validate(obj) + kind.validate_update(obj, old)
    if errors:
        assert invalid(kind.kind, kind.group, "x", errors).code == 422
    # Scale paths and embedded resources are checked as on create.
    again = [e for e in kind.validate_update(copy(obj), obj) if not e.field.startswith(".")]
    of_embedded = ("must not be empty", "some validation rules were not checked")
    assert [e for e in again if not any(words in e.detail for words in of_embedded)] == []
    assert len(kind.row(obj, NOW)) == len(kind.columns)


def resource(spec, status=None):
    return {
        "metadata": {"name": "x", "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": spec,
        "status": status,
    }


@given(JSON, JSON, JSON)
@settings(deadline=None)
def test_arbitrary_resources(spec, old, status):
    exercise(BOX, resource(spec, status), resource(old, status))


@given(SCHEMAS, JSON, JSON)
@settings(max_examples=200, deadline=None)
def test_arbitrary_definitions(spec_schema, spec, old):
    kind = compiled(crd_with(spec_schema))
    if kind is not None:
        exercise(kind, resource(spec), resource(old))


@given(SOUND, JSON, JSON)
@settings(deadline=None)
def test_sound_definitions(spec_schema, spec, old):
    kind = compiled(crd_with(spec_schema))
    assert kind is not None
    exercise(kind, resource(spec), resource(old))
