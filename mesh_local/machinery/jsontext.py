"""Strict reading of request bodies, JSON (RFC 8259) and YAML, with Go's error texts."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import yaml

# Kubernetes allows 10,000 levels. Every walk over an object here is recursive, and no kind nests as deep.
MAX_DEPTH = 200
MAX_DUPLICATES = 100
TOO_DEEP = "exceeded max depth"
_INT64 = range(-(2**63), 2**63)
_MAX_DIGITS = 20
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = " \t\r\n"
_LITERALS = {"t": "true", "f": "false", "n": "null"}


class TextError(ValueError):
    """The body cannot be read; the message is what Go would say."""


def parse_json(body: bytes) -> tuple[Any, list[str]]:
    """The data, and one message per key that occurs twice in an object (the last one counts).

    Raises:
        TextError: not JSON, not UTF-8, or nested too deep.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise TextError(f"invalid UTF-8 at byte {error.start}") from None
    repeated: dict[int, list[str]] = {}
    keep: list[Any] = []  # ids stay unique while the objects live

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            counts = Counter(k for k, _ in found)
            repeated[id(made)] = [k for k, times in counts.items() if times > 1]
            keep.append(made)
        return made

    try:
        data = json.loads(
            text, object_pairs_hook=pairs, parse_constant=_constant, parse_int=_int, parse_float=_float
        )
    except json.JSONDecodeError:
        raise TextError(explain(text)) from None
    except RecursionError:
        raise TextError(TOO_DEEP) from None
    check_depth(data)
    if "\\u" in text or "\\U" in text:
        data = _without_surrogates(data)
    return data, list(islice(_paths(data, "", repeated), MAX_DUPLICATES)) if repeated else []


def parse_yaml(body: bytes) -> Any:
    """The one document of a YAML body, restricted to what JSON can say.

    Raises:
        TextError: not YAML, several documents, aliases, or keys and values that JSON does not know.
    """
    try:
        text = body.decode()
        documents = yaml.load_all(text, Loader=_Loader)
        data = next(documents, None)
        if next(documents, None) is not None:
            raise TextError("yaml: expected a single document")
    except TextError:
        raise
    except RecursionError:
        raise TextError(f"yaml: {TOO_DEEP}") from None
    except (ValueError, KeyError, IndexError) as error:  # what the library's constructors let through
        raise TextError(f"yaml: a value is not of its type: {error}") from None
    except yaml.YAMLError as error:
        raise TextError("yaml: " + " ".join(str(error).split())) from None
    check_depth(data)
    return _without_surrogates(data) if "\\" in text else data


class _Loader(yaml.SafeLoader):
    """Safe, and without aliases (a small text could stand for a huge object), dates and non-string keys."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        # YAML 1.1 has numbers to base 60 (`22:22`), which Kubernetes' parser does not know
        if kind is yaml.ScalarNode and implicit[0] and ":" in value:
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, bool) or key is None:
                key = {True: "true", False: "false", None: "null"}[key]
            if not isinstance(key, str | int | float):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a key must be a string")
            key = str(key)
            if key in made:
                raise yaml.YAMLError(f'line {key_node.start_mark.line + 1}: key "{key}" already set in map')
            made[key] = self.construct_object(value_node, deep=True)
        return made

    def refuse(self, node: Any) -> Any:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {node.tag} is not a JSON type")

    def construct_integer(self, node: Any) -> int | float:
        value = self.construct_yaml_int(node)
        return value if value in _INT64 else _float(str(value))

    def construct_number(self, node: Any) -> float:
        value = float(self.construct_yaml_float(node))
        if not math.isfinite(value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: unsupported value: {node.value}")
        return value


_Loader.yaml_implicit_resolvers = {
    char: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":value"))]
    for char, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
for _tag in ("binary", "merge", "omap", "pairs", "set", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.refuse)


def _constant(name: str) -> Any:
    """NaN and Infinity, which Python would read."""
    if name.startswith("-"):
        raise TextError("invalid character 'I' in numeric literal")
    raise TextError(f"invalid character '{name[0]}' looking for beginning of value")


def _int(digits: str) -> int | float:
    """A whole number; like Go, one beyond 64 bits as floating point."""
    value = int(digits) if len(digits) <= _MAX_DIGITS else _INT64.stop
    return value if value in _INT64 else _float(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise TextError(f"json: cannot unmarshal number {digits[:40]} into Go value of type float64")
    return value


def check_depth(data: Any) -> None:
    """Raises TextError where data nests deeper than `MAX_DEPTH`."""
    depth = 0
    level = [data] if isinstance(data, dict | list) else []
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise TextError(TOO_DEEP)
        inner: list[Any] = []
        for value in level:
            values = value.values() if isinstance(value, dict) else value
            inner += [v for v in values if isinstance(v, dict | list)]
        level = inner


def _without_surrogates(value: Any) -> Any:
    """Half of a surrogate pair is no character: Go reads U+FFFD."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        # changed in place: the duplicate keys are remembered by the identity of the dict
        fixed = [(_without_surrogates(k), _without_surrogates(v)) for k, v in value.items()]
        value.clear()
        value.update(fixed)
    elif isinstance(value, list):
        value[:] = [_without_surrogates(v) for v in value]
    return value


def _paths(value: Any, path: str, repeated: dict[int, list[str]]) -> Iterator[str]:
    if isinstance(value, dict):
        for key in repeated.get(id(value), ()):
            shown = _LONE_SURROGATE.sub("\ufffd", f"{path}.{key}" if path else key)
            yield f'duplicate field "{shown}"'
        for key, inner in value.items():
            yield from _paths(inner, f"{path}.{key}" if path else key, repeated)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, f"{path}[{index}]", repeated)


def explain(text: str) -> str:
    """Go's message for a text that is not JSON."""
    try:
        at = _Scanner(text).value(0)
        at = _Scanner(text).skip(at)
    except _EndOfInput:
        return "unexpected end of JSON input"
    except TextError as error:
        return str(error)
    except RecursionError:
        return TOO_DEEP
    if at < len(text):
        return f"invalid character {_char(text[at])} after top-level value"
    return "invalid JSON"


class _EndOfInput(Exception):
    pass


class _Scanner:
    """Walks a text that is not JSON to the place where Go's scanner would stop."""

    def __init__(self, text: str) -> None:
        self._text = text

    def skip(self, at: int) -> int:
        while at < len(self._text) and self._text[at] in _SPACE:
            at += 1
        return at

    def _peek(self, at: int) -> str:
        if at >= len(self._text):
            raise _EndOfInput
        return self._text[at]

    def value(self, at: int) -> int:
        """The index after the value at `at`."""
        at = self.skip(at)
        char = self._peek(at)
        if char == "{":
            return self._object(at + 1)
        if char == "[":
            return self._array(at + 1)
        if char == '"':
            return self._string(at + 1)
        if char in _LITERALS:
            return self._literal(at, _LITERALS[char])
        if char == "-" or char.isdecimal():
            return self._number(at)
        raise _bad(char, "looking for beginning of value")

    def _object(self, at: int) -> int:
        at = self.skip(at)
        if self._peek(at) == "}":
            return at + 1
        while True:
            at = self.skip(at)
            if (char := self._peek(at)) != '"':
                raise _bad(char, "looking for beginning of object key string")
            at = self.skip(self._string(at + 1))
            if (char := self._peek(at)) != ":":
                raise _bad(char, "after object key")
            at = self.skip(self.value(at + 1))
            char = self._peek(at)
            if char == "}":
                return at + 1
            if char != ",":
                raise _bad(char, "after object key:value pair")
            at += 1

    def _array(self, at: int) -> int:
        at = self.skip(at)
        if self._peek(at) == "]":
            return at + 1
        while True:
            at = self.skip(self.value(at))
            char = self._peek(at)
            if char == "]":
                return at + 1
            if char != ",":
                raise _bad(char, "after array element")
            at += 1

    def _string(self, at: int) -> int:
        while (char := self._peek(at)) != '"':
            if char < " ":
                raise _bad(char, "in string literal")
            at += 1
            if char != "\\":
                continue
            char = self._peek(at)
            if char not in 'bfnrt\\/"u':
                raise _bad(char, "in string escape code")
            at += 1
            if char == "u":
                for at in range(at, at + 4):  # noqa: B020 - the index after the loop is the last digit
                    if self._peek(at) not in "0123456789abcdefABCDEF":
                        raise _bad(self._peek(at), "in \\u hexadecimal character escape")
                at += 1
        return at + 1

    def _literal(self, at: int, word: str) -> int:
        for offset, wanted in enumerate(word):
            if (char := self._peek(at + offset)) != wanted:
                raise _bad(char, f"in literal {word} (expecting '{wanted}')")
        return at + len(word)

    def _number(self, at: int) -> int:
        if self._text[at] == "-":
            at += 1
            if not self._digit(at):
                raise _bad(self._peek(at), "in numeric literal")
        if self._text[at] == "0":
            at += 1
        else:
            at = self._digits(at)
        if self._text[at : at + 1] == ".":
            at = self._needed_digits(at + 1, "after decimal point in numeric literal")
        if self._text[at : at + 1] in ("e", "E"):
            at += 1
            if self._peek(at) in "+-":
                at += 1
            at = self._needed_digits(at, "in exponent of numeric literal")
        return at

    def _digit(self, at: int) -> bool:
        return self._peek(at) in "0123456789"

    def _digits(self, at: int) -> int:
        while at < len(self._text) and self._digit(at):
            at += 1
        return at

    def _needed_digits(self, at: int, where: str) -> int:
        if not self._digit(at):
            raise _bad(self._peek(at), where)
        return self._digits(at)


def _bad(char: str, where: str) -> TextError:
    return TextError(f"invalid character {_char(char)} {where}")


def _char(char: str) -> str:
    if char == "'":
        return r"'\''"
    if char == '"':
        return "'\"'"
    if not char.isascii():
        return f"'{char}'" if char.isprintable() else f"'\\u{ord(char):04x}'"
    return repr(char)
