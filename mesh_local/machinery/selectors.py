"""Label and field selectors, with the error texts of apimachinery's `labels` and `fields` packages."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh_local.machinery import names
from mesh_local.machinery.errors import (
    ApiError,
    FieldError,
    bad_request,
    forbidden_field,
    go_quote,
    invalid_value,
    joined,
    required,
)
from mesh_local.machinery.metadata import validate_labels

_KEYWORDS = {"in", "notin"}
_UNARY = ("exists", "!")
_BINARY = ("in", "notin", "=", "==", "!=", "gt", "lt")
_SYMBOLS = {"=": "=", "==": "==", "!=": "!=", ">": "gt", "<": "lt"}
_OBJECT_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}
# Operators are read greedily; a run such as `=!` is an operator and what follows it.
_TOKEN = re.compile(r"[ \t\r\n]*(?:(==|!=|[=!(),<>])|([^=!(),<> \t\r\n]+)|\Z)")
_TERM = re.compile(r"(.*?)(!=|==|=)(.*)\Z", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]+")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """One term: `operator` is one of in, notin, =, ==, !=, gt, lt, exists and !."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "exists":
                return value is not None
            case "!":
                return value is None
            case "in" | "=" | "==":
                return value in self.values
            case "notin" | "!=":
                return value not in self.values
        if value is None or (number := _int64(value)) is None:
            return False
        bound = int(self.values[0])
        return number > bound if self.operator == "gt" else number < bound

    def __str__(self) -> str:
        match self.operator:
            case "exists":
                return self.key
            case "!":
                return f"!{self.key}"
            case "in" | "notin":
                return f"{self.key} {self.operator} ({','.join(sorted(self.values))})"
        symbol = {"gt": ">", "lt": "<"}.get(self.operator, self.operator)
        return f"{self.key}{symbol}{self.values[0]}"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements must hold. `nothing` marks the selector that matches no object at all."""

    requirements: tuple[LabelRequirement, ...] = ()
    nothing: bool = False

    @staticmethod
    def parse(text: str) -> "LabelSelector":
        """The selector of a `labelSelector` parameter. Raises ApiError 400."""
        return LabelSelector(tuple(sorted(_Parser(text).parse(), key=lambda r: r.key)))

    @staticmethod
    def from_object(selector: Mapping[str, Any] | None) -> "LabelSelector":
        """The selector of a meta/v1 LabelSelector; None matches nothing, an empty one everything.

        Raises:
            ApiError: 400; a stored object has been validated before (`validate_label_selector`).
        """
        if selector is None:
            return LabelSelector(nothing=True)
        found = [_requirement(k, "=", (v,)) for k, v in (selector.get("matchLabels") or {}).items()]
        for expression in selector.get("matchExpressions") or ():
            written = expression.get("operator") or ""
            operator = _OBJECT_OPERATORS.get(written)
            if operator is None:
                raise bad_request(f"{go_quote(written)} is not a valid label selector operator")
            found.append(_requirement(expression.get("key") or "", operator, expression.get("values") or ()))
        return LabelSelector(tuple(sorted(found, key=lambda r: r.key)))

    @staticmethod
    def from_labels(labels: Mapping[str, str] | None) -> "LabelSelector":
        """The selector of a plain map (Service, ReplicationController); empty or None matches nothing."""
        if not labels:
            return LabelSelector(nothing=True)
        return LabelSelector(tuple(LabelRequirement(k, "=", (v,)) for k, v in sorted(labels.items())))

    @property
    def empty(self) -> bool:
        """Whether every object matches."""
        return not self.requirements and not self.nothing

    def matches(self, labels: Mapping[str, str]) -> bool:
        return not self.nothing and all(r.matches(labels) for r in self.requirements)

    def __str__(self) -> str:
        return ",".join(str(r) for r in self.requirements)


def validate_label_selector(selector: Mapping[str, Any], field: str) -> list[FieldError]:
    """What is wrong with a meta/v1 LabelSelector (apimachinery's `ValidateLabelSelector`)."""
    errors = validate_labels(selector.get("matchLabels") or {}, f"{field}.matchLabels")
    for index, expression in enumerate(selector.get("matchExpressions") or ()):
        path = f"{field}.matchExpressions[{index}]"
        operator, values = expression.get("operator") or "", expression.get("values") or ()
        if operator in ("In", "NotIn"):
            if not values:
                detail = "must be specified when `operator` is 'In' or 'NotIn'"
                errors.append(required(f"{path}.values", detail))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                errors.append(forbidden_field(f"{path}.values", detail))
        else:
            errors.append(invalid_value(f"{path}.operator", operator, "not a valid selector operator"))
        key = expression.get("key") or ""
        errors += [invalid_value(f"{path}.key", key, m) for m in names.qualified_name(key)]
        for number, value in enumerate(values):
            errors += [invalid_value(f"{path}.values[{number}]", value, m) for m in names.label_value(value)]
    return errors


def _requirement(key: str, operator: str, values: Sequence[str] = ()) -> LabelRequirement:
    """A checked requirement. Raises ApiError 400."""
    errors = _key_errors(key, "key")
    if operator in ("in", "notin") and not values:
        detail = "for 'in', 'notin' operators, values set can't be empty"
        errors.append(invalid_value("values", [], detail))
    elif operator in _UNARY and values:
        detail = "values set must be empty for exists and does not exist"
        errors.append(invalid_value("values", list(values), detail))
    elif operator in ("gt", "lt") and _int64(values[0]) is None:
        detail = "for 'Gt', 'Lt' operators, the value must be an integer"
        errors.append(invalid_value("values[0]", values[0], detail))
    for index, value in enumerate(values):
        if wrong := names.label_value(value):
            errors.append(invalid_value(f"values[{index}][{key}]", value, "; ".join(wrong)))
    if errors:
        raise bad_request(joined(errors))
    return LabelRequirement(key, operator, tuple(values))


def _key_errors(key: str, field: str) -> list[FieldError]:
    wrong = names.qualified_name(key)
    return [invalid_value(field, key, "; ".join(wrong))] if wrong else []


def _int64(text: str) -> int | None:
    if len(text) > 20 or not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return number if number in _INT64 else None


class _Parser:
    """Recursive descent over the tokens of a label selector; '' is the end of the text."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0

    def parse(self) -> list[LabelRequirement]:
        found: list[LabelRequirement] = []
        while True:
            token = self._peek()
            if not token:
                return found
            if not _is_word(token) and token != "!":
                raise _expected(token, "!, identifier, or 'end of string'")
            try:
                found.append(self._requirement())
            except _SyntaxError as error:
                raise bad_request(f"unable to parse requirement: {error}") from None
            token = self._next()
            if not token:
                return found
            if token != ",":
                raise _expected(token, "',' or 'end of string'")
            token = self._peek()
            if not _is_word(token) and token != "!":
                raise _expected(token, "identifier after ','")

    def _peek(self) -> str:
        return self._tokens[self._at]

    def _next(self) -> str:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _requirement(self) -> LabelRequirement:
        negated = self._peek() == "!"
        if negated:
            self._next()
        key = self._next()
        if not _is_word(key):
            raise _SyntaxError(f"found '{key}', expected: identifier")
        if wrong := _key_errors(key, "<nil>"):
            raise _SyntaxError(str(wrong[0]))
        if self._peek() in ("", ","):
            return _requirement(key, "!" if negated else "exists")
        symbol = self._next()
        operator = _SYMBOLS.get(symbol, symbol)
        if symbol in _KEYWORDS:
            values = self._values()
        elif symbol in _SYMBOLS:
            values = [self._exact_value()]
        else:
            raise _SyntaxError(f"found '{symbol}', expected: {', '.join(_BINARY)}")
        try:
            return _requirement(key, operator, values)
        except ApiError as error:
            raise _SyntaxError(error.message) from None

    def _exact_value(self) -> str:
        if self._peek() in ("", ","):
            return ""
        value = self._next()
        if not _is_word(value):
            raise _SyntaxError(f"found '{value}', expected: identifier")
        return value

    def _values(self) -> list[str]:
        """`(a,b)`; an empty place is the empty value."""
        token = self._next()
        if token != "(":
            raise _SyntaxError(f"found '{token}' expected: '('")
        values: set[str] = set()
        pending = ""  # the value before the next comma
        while True:
            token = self._next()
            if token in (",", ")"):
                values.add(pending)
                pending = ""
                if token == ")":
                    return sorted(values)
            elif _is_word(token):
                pending = token
                if self._peek() not in (",", ")"):
                    raise _SyntaxError(f"found '{self._peek()}', expected: ',' or ')'")
            elif values:
                raise _SyntaxError(f"found '{token}', expected: ',', or identifier")
            else:
                raise _SyntaxError(f"found '{token}', expected: ',', ')' or identifier")


class _SyntaxError(Exception):
    """What is wrong inside one requirement."""


def _expected(found: str, wanted: str) -> ApiError:
    return bad_request(f"found '{found}', expected: {wanted}")


def _is_word(token: str) -> bool:
    return bool(token) and token not in _SYMBOLS and token not in ("!", "(", ")", ",")


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while True:
        found = _TOKEN.match(text, at)
        if found is None:
            raise AssertionError("the token pattern matches at every position")
        token = found[1] or found[2] or ""
        tokens.append(token)
        if not token:
            return tokens
        at = found.end()


@dataclass(frozen=True, slots=True)
class FieldRequirement:
    """`operator` is `=` or `!=`."""

    field: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """All requirements must hold."""

    requirements: tuple[FieldRequirement, ...] = ()

    @staticmethod
    def parse(text: str) -> "FieldSelector":
        """The selector of a `fieldSelector` parameter. Raises ApiError 400."""
        found = []
        for term in _terms(text):
            split = _TERM.match(term)
            if split is None:
                raise bad_request(f"invalid selector: '{text}'; can't understand '{term}'")
            operator = "!=" if split[2] == "!=" else "="
            found.append(FieldRequirement(split[1], operator, _unescape(split[3])))
        return FieldSelector(tuple(sorted(found, key=lambda r: (r.field, r.operator, r.value))))

    @property
    def empty(self) -> bool:
        return not self.requirements

    def matches(self, value_of: Callable[[str], str]) -> bool:
        """Whether an object matches whose field values `value_of` gives."""
        return all((value_of(r.field) == r.value) == (r.operator == "=") for r in self.requirements)

    def check(self, known: Iterable[str], *, custom: bool = False) -> None:
        """Refuse fields that this kind cannot be selected by.

        Args:
            known: labels beyond metadata.name and metadata.namespace.
            custom: a custom resource. Kubernetes words the refusal differently for kinds without fields of
                their own.

        Raises:
            ApiError: 400.
        """
        more = tuple(known)
        for requirement in self.requirements:
            field = requirement.field
            if field in ("metadata.name", "metadata.namespace") or field in more:
                continue
            if more or custom:
                raise bad_request(f"field label not supported: {field}")
            raise bad_request(
                f'{go_quote(field)} is not a known field selector: only "metadata.name", "metadata.namespace"'
            )

    def __str__(self) -> str:
        return ",".join(f"{r.field}{r.operator}{_escape(r.value)}" for r in self.requirements)


def _terms(text: str) -> list[str]:
    """The text split at the commas that no backslash escapes."""
    return re.findall(r"(?:[^,\\]|\\.|\\\Z)+", text, re.DOTALL)


def _escape(value: str) -> str:
    return re.sub(r"([\\,=])", r"\\\1", value)


def _unescape(value: str) -> str:
    """Raises ApiError 400 for an unknown escape or an unescaped `,` or `=`."""
    if bad := re.search(r"\\(?![\\,=]).?", re.sub(r"\\[\\,=]", "", value), re.DOTALL):
        raise bad_request(f"invalid field selector: invalid escape sequence: {bad[0]}")
    if bad := re.search("[,=]", re.sub(r"\\[\\,=]", "", value)):
        raise bad_request(f"invalid field selector: unescaped character in value: {bad[0]}")
    return re.sub(r"\\([\\,=])", r"\1", value)
