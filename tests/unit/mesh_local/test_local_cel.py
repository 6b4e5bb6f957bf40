"""Rules in the Common Expression Language: compilation, values, messages, old values and bounds."""
# ruff: noqa: E501  (messages are written whole)

import pytest

from mesh_local.machinery.cel_expression import CelError, compile_expression, pattern_error, pattern_matches
from mesh_local.machinery.cel_rules import compile_rules, run_rules

INT = {"type": "integer"}
STRING = {"type": "string"}


def rules_of(schema, *entries):
    compiled = compile_rules(schema | {"x-kubernetes-validations": list(entries)})
    assert compiled is not None
    return compiled


def said(schema, value, *entries, old=None) -> list[str]:
    return [str(e) for e in run_rules(rules_of(schema, *entries), value, old)]


def holds(expression, value, schema) -> bool:
    return said(schema, value, {"rule": expression}) == []


SPEC = {
    "type": "object",
    "properties": {
        "min": INT,
        "max": INT,
        "ratio": {"type": "number"},
        "when": {"type": "string", "format": "date-time"},
        "wait": {"type": "string", "format": "duration"},
        "a-b": STRING,
        "in": STRING,
        "names": {"type": "array", "items": STRING},
        "by": {"type": "object", "additionalProperties": INT},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "memory": {"x-kubernetes-int-or-string": True},
    },
}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("self.min <= self.max", {"min": 1, "max": 2}),
        ("!has(self.min)", {}),
        ("self.ratio + 0.5 == 1.5", {"ratio": 1}),
        ("self.when < timestamp('2026-01-02T00:00:00Z')", {"when": "2026-01-01T00:00:00Z"}),
        ("self.wait == duration('90s')", {"wait": "1m30s"}),
        ("self.a__dash__b == self.__in__", {"a-b": "x", "in": "x"}),
        ("self.names.all(n, n.startsWith('a')) && self.names.exists(n, n == 'ab')", {"names": ["a", "ab"]}),
        ("self.by.all(k, self.by[k] > 0)", {"by": {"x": 1}}),
        ("quantity(self.memory).isLessThan(quantity('2Gi'))", {"memory": "1Gi"}),
        ("type(self.memory) == int", {"memory": 1}),
        ("self.names.join('-').split('-').isSorted()", {"names": ["a", "b"]}),
        ("'%s is %d'.format(['a', 1]) == 'a is 1'", {}),
        ("self.names.map(n, size(n)).sum() == 3", {"names": ["a", "bc"]}),
        ("'AB'.lowerAscii() == 'ab' && ' x '.trim() == 'x' && 'abc'.substring(1) == 'bc'", {}),
        ("url('https://a.example:81/b').getHost() == 'a.example:81'", {}),
        ("url('https://u@[::1]:81/b').getPort() == '81' && url('https://[::1]/').getPort() == ''", {}),
        ("url('https://a.example/b').getScheme() + url('//h/b').getHostname() == 'httpsh'", {}),
        ("isIP('10.0.0.1') && !isCIDR('10.0.0.1') && isURL('https://a.example/b')", {}),
    ],
)  # fmt: skip
def test_what_rules_can_say(expression, value):
    assert holds(expression, value, SPEC)


def test_undeclared_fields_are_hidden():
    assert said(SPEC, {"free": {"x": 1}}, {"rule": "size(self.free) == 0"}) == []


def test_messages():
    value = {"min": 2, "max": 1}
    rule = "self.min <= self.max"
    assert said(SPEC, value, {"rule": rule}) == [f"<nil>: Invalid value: failed rule: {rule}"]
    assert said(SPEC, value, {"rule": rule, "message": "order!"}) == ["<nil>: Invalid value: order!"]
    worded = {
        "rule": rule,
        "message": "order!",
        "messageExpression": "string(self.min) + ' > ' + string(self.max)",
    }
    assert said(SPEC, value, worded) == ["<nil>: Invalid value: 2 > 1"]
    failing = {"rule": rule, "message": "order!", "messageExpression": "string(self.names[9])"}
    assert said(SPEC, value, failing) == ["<nil>: Invalid value: order!"]


def test_reason_and_field_path():
    entry = {"rule": "false", "message": "no", "reason": "FieldValueForbidden", "fieldPath": ".min"}
    schema = {"type": "object", "properties": {"spec": SPEC | {"x-kubernetes-validations": [entry]}}}
    assert [str(e) for e in run_rules(compile_rules(schema), {"spec": {}})] == ["spec.min: Forbidden: no"]


def test_rules_apply_at_every_level():
    positive = {"x-kubernetes-validations": [{"rule": "self > 0", "message": "positive"}]}
    schema = {
        "type": "object",
        "properties": {
            "list": {"type": "array", "items": INT | positive},
            "map": {"type": "object", "additionalProperties": INT | positive},
        },
    }
    errors = run_rules(compile_rules(schema), {"list": [1, 0], "map": {"a": -1, "b": 1}})
    assert [str(e) for e in errors] == [
        "list[1]: Invalid value: positive",
        "map[a]: Invalid value: positive",
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("self.max > 0", "no such key: max evaluating rule: self.max > 0"),
        ("self.names[3] == ''", "index out of bounds: 3 evaluating rule: self.names[3] == ''"),
        ("1 / self.min > 0", "division by zero evaluating rule: 1 / self.min > 0"),
        (
            "self.min > 'a'",
            "'no such overload': call arguments did not match a supported operator, function or macro signature "
            "for rule: self.min > 'a'",
        ),
        ("self.min", "rule must evaluate to a bool, not int, evaluating rule: self.min"),
    ],
)
def test_rules_that_cannot_be_evaluated(rule, expected):
    assert said(SPEC, {"min": 0, "names": []}, {"rule": rule}) == [f"<nil>: Invalid value: {expected}"]


def test_transition_rules_need_an_old_value():
    immutable = {"rule": "self == oldSelf", "message": "immutable"}
    assert said(INT, 1, immutable) == []
    assert said(INT, 1, immutable, old=1) == []
    assert said(INT, 2, immutable, old=1) == ["<nil>: Invalid value: immutable"]


def test_an_optional_old_value_is_there_on_create_too():
    entry = {"rule": "!oldSelf.hasValue() || self > oldSelf.value()", "optionalOldSelf": True}
    assert said(INT, 1, entry) == []
    assert said(INT, 2, entry, old=1) == []
    assert said(INT, 1, entry, old=2) != []


def test_items_of_a_keyed_list_are_correlated():
    item = {
        "type": "object",
        "properties": {"name": STRING, "v": INT},
        "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "may only grow"}],
    }
    schema = {
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    }
    old = [{"name": "a", "v": 5}, {"name": "b", "v": 1}]
    new = [{"name": "b", "v": 2}, {"name": "a", "v": 4}, {"name": "c", "v": 0}]
    assert [str(e) for e in run_rules(compile_rules(schema), new, old)] == [
        "[1]: Invalid value: may only grow"
    ]


def test_an_unchanged_part_is_not_judged_again():
    entry = {"rule": "self.min <= self.max"}
    bad = {"min": 2, "max": 1}
    assert said(SPEC, bad, entry, old=bad) == []
    assert said(SPEC, bad | {"ratio": 1}, entry, old=bad) != []


def test_items_of_an_unchanged_list_are_not_judged_again():
    positive = {"x-kubernetes-validations": [{"rule": "self > 0"}]}
    rules = compile_rules({"type": "array", "items": INT | positive})
    assert run_rules(rules, [0], [0]) == []
    assert len(run_rules(rules, [0, 1], [0])) == 1


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 +", "compilation failed: ERROR: <input>:1:4: Syntax error"),
        (
            "foo(self)",
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')",
        ),
        ("true &&\n x", "compilation failed: ERROR: <input>:2:2: undeclared reference to 'x'"),
        ("self.?a.hasValue()", "compilation failed: ERROR: <input>:1:5: unsupported syntax '.?'"),
        (
            "self.names.all(i, v, v == '')",
            "compilation failed: ERROR: <input>:1:19: undeclared reference to 'v'",
        ),
        ("self.nope.size() > 0", "compilation failed: ERROR: <input>:1:5: undefined field 'nope'"),
        ("'" + "a" * 10_000 + "' == ''", "expression is too long: 10008 characters, at most 10000"),
        ("self.names" + ".all(x, self.names" * 5 + " == []" + ")" * 5, "too many comprehensions: at most 12"),
    ],
)
def test_expressions_that_are_refused(expression, expected):
    with pytest.raises(CelError) as error:
        compile_expression(expression, SPEC)
    assert str(error.value).startswith(expected)


def test_names_in_strings_and_comments_are_not_references():
    assert compile_expression("self.min > 0 && 'self.nope foo(x)' != '' // self.other", SPEC)
    assert compile_expression('self.names.exists(self_, self_ == "x.all(y, z)")', SPEC).nesting == 1


def test_the_steps_of_a_rule_are_bounded():
    deep = "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"
    (error,) = said({"type": "array", "items": INT}, list(range(200)), {"rule": deep})
    assert "actual cost limit exceeded" in error
    assert said({"type": "array", "items": INT}, list(range(20)), {"rule": deep}) == []


def test_the_steps_of_an_object_are_bounded():
    square = {"rule": "self.all(a, self.all(b, a + b >= 0))"}
    errors = said({"type": "array", "items": INT}, [0] * 1000, *([square] * 3))
    assert len(errors) == 1
    assert "running out of cost budget, no further validation rules will be run" in errors[0]


@pytest.mark.parametrize(
    "rule",
    [
        "[self]" + ".map(a, a+a+a+a)" * 12 + " != []",
        "self" + ".replace('x', self)" * 4 + " != ''",
        "'" + "x" * 5000 + "'.replace('x', self).replace('x', self) != ''",
    ],
)
def test_texts_cannot_grow_without_bound(rule):
    (error,) = said(STRING, "x" * 500, {"rule": rule})
    assert "actual cost limit exceeded" in error


def test_a_message_that_would_take_too_long_is_left_out():
    entry = {"rule": "false", "messageExpression": "self" + ".replace('x', self)" * 4}
    assert said(STRING, "x" * 500, entry) == ["<nil>: Invalid value: failed rule: false"]


def test_short_texts_may_be_built():
    rule = {"rule": "self.replace('a', self).replace('b', self) + 'x' != ''"}
    assert said(STRING, "ab" * 10, rule) == []


def test_patterns_are_those_of_go():
    assert pattern_matches("^[[:alpha:]]+$", "ab")
    assert not pattern_matches("^ab$", "ab\n")
    assert pattern_matches("b", "abc")
    assert pattern_error("(") == "unclosed group"
    assert pattern_error("(?<name>a)") == ""


def test_a_hostile_pattern_takes_linear_time():
    assert not pattern_matches("^(a+)+$", "a" * 50_000 + "b")


def test_no_rules_no_tree():
    assert compile_rules({"type": "object", "properties": {"a": INT}}) is None
