"""`x-kubernetes-validations`: the rules of a schema, compiled once and run over objects (KEP-2876)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cel

from mesh_local.machinery.cel_expression import NO_OVERLOAD, CelError, Expression, compile_expression
from mesh_local.machinery.cel_values import to_cel
from mesh_local.machinery.errors import OMIT, FieldError
from mesh_local.machinery.structural import Schema
from mesh_local.machinery.structural_validate import same_json

# Rules run on the event loop: a million steps take about a third of a second.
RULE_STEPS_MAX = 1_000_000
OBJECT_STEPS_MAX = 2_000_000
MESSAGE_MAX = 5 * 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `x-kubernetes-validations`, compiled."""

    source: str
    message: str
    reason: str
    field_path: str
    optional_old: bool
    expression: Expression
    message_expression: Expression | None


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a schema and of the schemas inside it."""

    schema: Schema
    rules: tuple[Rule, ...] = ()
    properties: Mapping[str, "Rules"] = field(default_factory=dict)
    items: "Rules | None" = None
    additional: "Rules | None" = None
    is_resource: bool = False


def compile_rule(entry: Mapping[str, Any], schema: Schema, *, is_resource: bool = False) -> Rule:
    """Raises CelError."""
    source, message_source = entry.get("rule") or "", entry.get("messageExpression") or ""
    return Rule(
        source=source,
        message=(entry.get("message") or "").strip(),
        reason=entry.get("reason") or "FieldValueInvalid",
        field_path=(entry.get("fieldPath") or "").strip().removeprefix("."),
        optional_old=bool(entry.get("optionalOldSelf")),
        expression=compile_expression(source, schema, is_resource=is_resource),
        message_expression=(
            compile_expression(message_source, schema, is_resource=is_resource) if message_source else None
        ),
    )


def compile_rules(schema: Schema, *, is_resource: bool = True) -> Rules | None:
    """All rules of a schema; None where there are none.

    Raises:
        CelError: one does not compile.
    """
    is_resource = is_resource or bool(schema.get("x-kubernetes-embedded-resource"))
    rules = tuple(
        compile_rule(entry, schema, is_resource=is_resource)
        for entry in schema.get("x-kubernetes-validations") or ()
    )
    properties = {
        key: compiled
        for key, child in (schema.get("properties") or {}).items()
        if (compiled := compile_rules(child, is_resource=False))
    }
    items, additional = schema.get("items"), schema.get("additionalProperties")
    found = Rules(
        schema,
        rules,
        properties,
        compile_rules(items, is_resource=False) if isinstance(items, Mapping) else None,
        compile_rules(additional, is_resource=False) if isinstance(additional, Mapping) else None,
        is_resource,
    )
    return found if rules or properties or found.items or found.additional else None


@dataclass(slots=True)
class _Budget:
    left: int = OBJECT_STEPS_MAX


def run_rules(rules: Rules, obj: Any, old: Any = None) -> list[FieldError]:
    """What the rules say of `obj`; transition rules run where `old` (None: a create) has the same place."""
    return list(_run(rules, obj, old, "", _Budget(), unchanged=False))


def _run(
    rules: Rules, value: Any, old: Any, path: str, budget: _Budget, *, unchanged: bool
) -> Iterator[FieldError]:
    """`unchanged`: something that holds `value` is as it was; only transition rules can say anything new."""
    if value is None or budget.left < 0:
        return
    unchanged = unchanged or (old is not None and same_json(old, value))
    if rules.rules:
        yield from _run_here(rules, value, old, path, budget, unchanged)
    if isinstance(value, list) and rules.items:
        before = _correlated(rules.schema, value, old)
        for index, item in enumerate(value):
            yield from _run(rules.items, item, before[index], f"{path}[{index}]", budget, unchanged=unchanged)
    elif isinstance(value, dict):
        was = old if isinstance(old, dict) else {}
        for key, child in rules.properties.items():
            if key in value:
                where = f"{path}.{key}" if path else key
                yield from _run(child, value[key], was.get(key), where, budget, unchanged=unchanged)
        if rules.additional:
            declared = rules.schema.get("properties") or {}
            for key in value:
                if key not in declared:
                    where = f"{path}[{key}]"
                    yield from _run(
                        rules.additional, value[key], was.get(key), where, budget, unchanged=unchanged
                    )


def _correlated(schema: Schema, value: list[Any], old: Any) -> list[Any]:
    """For each item its predecessor in the old list; only lists of type map have them."""
    keys = schema.get("x-kubernetes-list-map-keys") or ()
    if schema.get("x-kubernetes-list-type") != "map" or not isinstance(old, list):
        return [None] * len(value)

    def key_of(item: Any) -> tuple[str, ...]:
        return tuple(repr(item.get(k)) for k in keys) if isinstance(item, dict) else ()

    before = {key_of(item): item for item in old}
    return [before.get(key_of(item)) for item in value]


def _run_here(
    rules: Rules, value: Any, old: Any, path: str, budget: _Budget, unchanged: bool
) -> Iterator[FieldError]:
    this = to_cel(value, rules.schema, rules.is_resource)
    was = None if old is None else to_cel(old, rules.schema, rules.is_resource)
    collection, text = _sizes(value)
    where = path or "<nil>"
    for rule in rules.rules:
        if rule.expression.uses_old and old is None and not rule.optional_old:
            continue
        # Ratcheting: a rule over what did not change must not stop an unrelated update.
        if unchanged and not rule.expression.uses_old:
            continue
        steps = rule.expression.steps(collection, text)
        budget.left -= steps
        if steps > RULE_STEPS_MAX:
            yield _invalid(
                where,
                "'operation cancelled: actual cost limit exceeded': no further validation rules will be run "
                f"due to call cost exceeds limit for rule: {rule.message or rule.source}",
            )
            return
        if budget.left < 0:
            yield _invalid(
                where,
                "validation failed due to running out of cost budget, no further validation rules will be "
                "run",
            )
            return
        variables = {"self": this}
        if rule.optional_old:
            variables["oldSelf"] = cel.OptionalValue.none() if old is None else cel.OptionalValue.of(was)
        elif old is not None:
            variables["oldSelf"] = was
        if error := _run_rule(rule, variables, where, (collection, text)):
            yield error


def _run_rule(
    rule: Rule, variables: Mapping[str, Any], where: str, sizes: tuple[int, int]
) -> FieldError | None:
    shown = f"rule: {rule.message or rule.source}"
    try:
        outcome = rule.expression.run(variables)
    except CelError as error:
        if str(error) == NO_OVERLOAD:
            text = "call arguments did not match a supported operator, function or macro signature for"
            return _invalid(where, f"'{NO_OVERLOAD}': {text} {shown}")
        return _invalid(where, f"{error} evaluating {shown}")
    if outcome is True:
        return None
    if outcome is not False:
        return _invalid(
            where, f"rule must evaluate to a bool, not {type(outcome).__name__}, evaluating {shown}"
        )
    detail = _message(rule, variables, sizes) or rule.message or f"failed rule: {rule.source.strip()}"
    if rule.field_path:
        where = rule.field_path if where == "<nil>" else f"{where}.{rule.field_path}"
    return FieldError(rule.reason, where, "" if rule.reason == "FieldValueDuplicate" else detail, OMIT)


def _invalid(where: str, detail: str) -> FieldError:
    return FieldError("FieldValueInvalid", where, detail, OMIT)


def _message(rule: Rule, variables: Mapping[str, Any], sizes: tuple[int, int]) -> str:
    """The text of messageExpression; '' where there is none, it fails, or it would take too long."""
    if rule.message_expression is None or rule.message_expression.steps(*sizes) > RULE_STEPS_MAX:
        return ""
    try:
        text = rule.message_expression.run(variables)
    except CelError:
        return ""
    good = isinstance(text, str) and len(text.encode()) <= MESSAGE_MAX and "\n" not in text
    return text.strip() if good else ""


def _sizes(value: Any) -> tuple[int, int]:
    """The size of the largest collection in a value, and of its longest string."""
    if isinstance(value, str):
        return 1, len(value)
    if not isinstance(value, dict | list):
        return 1, 0
    parts = [_sizes(v) for v in (value.values() if isinstance(value, dict) else value)]
    keys = max(map(len, value), default=0) if isinstance(value, dict) else 0
    return max([len(value), *(c for c, _ in parts)]), max([keys, *(t for _, t in parts)])
