"""Compiles and runs expressions of the Common Expression Language (`cel`), and its regular expressions.

The library has no static types and no cost estimate, so a few checks of ours stand in: unknown names and
functions, `self.a.b` of fields that the schema lacks, and bounds on the length of an expression, on the
number and nesting of its comprehensions, and on how far it can make texts grow.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cel

from mesh_local.machinery.cel_functions import FUNCTIONS, KNOWN
from mesh_local.machinery.cel_values import escape
from mesh_local.machinery.structural import RESOURCE_FIELDS, Schema

EXPRESSION_MAX = 10_000
COMPREHENSIONS_MAX = 12
NESTING_MAX = 4
NO_OVERLOAD = "no such overload"

_STRING = re.compile(
    r"[rRbB]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')|//[^\n]*", re.DOTALL
)
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*([A-Za-z_]\w*)\s*,")
_MAP = re.compile(r"\.\s*map\s*\(")
_INSERT = re.compile(r"\.\s*(?:replace|join|format)\s*\(")
_TEXT_PER_STEP = 1000
_BRACKET = re.compile(r"[()]")
_CHAIN = re.compile(r"(?<![\w.])(?:self|oldSelf)((?:\.[A-Za-z_]\w*(?!\w*\s*\())+)")
_TYPES = frozenset(
    ("int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type", "optional")
)


class CelError(Exception):
    """An expression that does not compile or cannot be evaluated; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression.

    Attributes:
        nesting: how deep comprehensions are nested.
        repeats: by how much concatenation can multiply a text, at most.
        inserts: how many functions put one text into another.
        literal: the length of the longest string in the source.
        uses_old: it mentions `oldSelf`.
    """

    program: Any
    nesting: int
    repeats: int
    inserts: int
    literal: int
    uses_old: bool

    def steps(self, collection: int, text: int) -> int:
        """An upper bound of the work to run it.

        Args:
            collection, text: the size of the largest collection, and of the longest string, in the values.
        """
        text = max(1, text, self.literal)
        loops: int = max(1, collection) ** self.nesting
        copied: int = self.repeats * text ** (self.inserts + 1) // _TEXT_PER_STEP
        return loops * max(1, copied)

    def run(self, variables: Mapping[str, Any]) -> Any:
        """Raises CelError with the text of cel-go."""
        context = cel.Context(variables=dict(variables), functions=FUNCTIONS)
        try:
            return self.program.execute(context)
        except KeyError as error:
            raise CelError(f"no such key: {error.args[0]}") from None
        except IndexError as error:
            raise CelError(str(error)) from None
        except ZeroDivisionError:
            raise CelError("division by zero") from None
        except OverflowError:
            raise CelError("integer overflow") from None
        except TypeError:
            raise CelError(NO_OVERLOAD) from None
        except (ValueError, RuntimeError) as error:
            text = str(error).splitlines()[0]
            # Names were checked when compiling; the library says this of arguments of a wrong type too.
            raise CelError(
                NO_OVERLOAD if text.startswith("Undefined variable or function") else text
            ) from None


def compile_expression(source: str, schema: Schema | None = None, *, is_resource: bool = False) -> Expression:
    """Compile an expression over `self` and `oldSelf`.

    Raises:
        CelError: it is not valid, or too large.
    """
    if len(source) > EXPRESSION_MAX:
        raise CelError(f"expression is too long: {len(source)} characters, at most {EXPRESSION_MAX}")
    try:
        program = cel.compile(source)
    except ValueError as error:
        _before, mark, text = str(error).partition("ERROR:")
        raise CelError(f"compilation failed: {mark}{text}" if mark else str(error)) from None
    blank = _STRING.sub(lambda m: " " * len(m.group()), source)
    bound = set(_MACRO.findall(blank))
    references = program.references()
    for name in references["variables"]:
        if name not in bound | _TYPES | {"self", "oldSelf"}:
            raise CelError(
                _located(source, blank, name, f"undeclared reference to '{name}' (in container '')")
            )
    for name in references["functions"]:
        if name.isidentifier() and name not in KNOWN:
            raise CelError(
                _located(source, blank, name, f"undeclared reference to '{name}' (in container '')")
            )
    nesting = _nesting(blank)
    if len(_MACRO.findall(blank)) > COMPREHENSIONS_MAX or nesting > NESTING_MAX:
        raise CelError(
            f"too many comprehensions: at most {COMPREHENSIONS_MAX}, nested at most {NESTING_MAX} deep"
        )
    if schema is not None:
        _check_fields(source, blank, schema, is_resource)
    maps = max(1, len(_MAP.findall(blank)))
    return Expression(
        program,
        nesting,
        math.ceil((1 + blank.count("+") / maps) ** maps),
        len(_INSERT.findall(blank)),
        max((len(m.group()) for m in _STRING.finditer(source)), default=0),
        "oldSelf" in references["variables"],
    )


def _located(source: str, blank: str, name: str, text: str) -> str:
    found = re.search(rf"\b{re.escape(name)}\b", blank)
    return _at(source, found.start() if found else 0, text)


def _at(source: str, offset: int, text: str) -> str:
    """A compile error with cel-go's picture of the place."""
    line = source.count("\n", 0, offset)
    column = offset - (source.rfind("\n", 0, offset) + 1)
    shown = source.splitlines()[line] if source else ""
    return (
        f"compilation failed: ERROR: <input>:{line + 1}:{column + 1}: {text}\n | {shown}\n | {'.' * column}^"
    )


def _nesting(blank: str) -> int:
    """The depth of comprehensions inside comprehensions."""
    opens = {m.start() + m.group().index("(") for m in _MACRO.finditer(blank)}
    stack: list[bool] = []
    deepest = 0
    for match in _BRACKET.finditer(blank):
        if match.group() == "(":
            stack.append(match.start() in opens)
            deepest = max(deepest, sum(stack)) if stack[-1] else deepest
        elif stack:
            stack.pop()
    return deepest


def _check_fields(source: str, blank: str, schema: Schema, is_resource: bool) -> None:
    """Refuse `self.x` where the schema has no such field, as cel-go's type checker does."""
    for match in _CHAIN.finditer(blank):
        current: Schema | None = schema
        resource = is_resource
        offset = match.start(1)
        for name in match.group(1)[1:].split("."):
            if current is None or not _closed(current):
                break
            fields = {escape(k): v for k, v in (current.get("properties") or {}).items()}
            if name in fields:
                current = fields[name]
            elif resource and name in RESOURCE_FIELDS:
                current = None
            else:
                raise CelError(_at(source, offset, f"undefined field '{name}'"))
            resource = bool(current and current.get("x-kubernetes-embedded-resource"))
            offset += len(name) + 1


def _closed(schema: Schema) -> bool:
    """Whether the schema names all the fields that an expression may use."""
    additional = schema.get("additionalProperties")
    return schema.get("type") == "object" and (additional is None or additional is False)


@lru_cache(maxsize=512)
def _pattern_program(pattern: str) -> Any:
    program = cel.compile("value.matches(pattern)")
    program.execute({"value": "", "pattern": pattern})
    return program


def pattern_error(pattern: str) -> str:
    """Why `pattern` is not a regular expression; '' for a good one."""
    try:
        _pattern_program(pattern)
    except (RuntimeError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.startswith("error: ")]
        return (
            (lines[0] if lines else str(error).splitlines()[0])
            .removeprefix("error: ")
            .partition(". Check")[0]
        )
    return ""


def pattern_matches(pattern: str, text: str) -> bool:
    """Whether the pattern occurs in `text`, in time linear in its length (RE2's syntax, like Go's regexp)."""
    return bool(_pattern_program(pattern).execute({"value": text, "pattern": pattern}))
