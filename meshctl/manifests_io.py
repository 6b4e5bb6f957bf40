"""A stream of YAML documents, of which some are changed and the others stay as they were, byte for byte.

YAML is read as Kubernetes' tools read it: a date is text, and a key that occurs twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import yaml

MAX_CHARS = 16 * 1024 * 1024


class ManifestError(ValueError):
    """Text that cannot be read as manifests; the message says where."""


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable) or key in seen:
            mark = key_node.start_mark
            raise ManifestError(f"line {mark.line + 1}: key {key!r} occurs twice in one mapping")
        seen.add(key)
    found: dict[Any, Any] = yaml.SafeLoader.construct_mapping(loader, node, deep=True)
    return found


# A scientific number needs no point in YAML 1.2, and Kubernetes' reader takes it.
_FLOAT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
# Text that some reader takes for a number, a date or a boolean.
_AMBIGUOUS = re.compile(r"[-+.]?[0-9][-+.:_0-9a-zA-Z]*|[yYnN]|[-+]?\.(?:inf|nan)", re.ASCII | re.IGNORECASE)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else '"' if _AMBIGUOUS.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
_Dumper.add_representer(str, _text)


def changed(text: str, change: Callable[[Any, int], Any]) -> str:
    """`text` with each document replaced by what `change` makes of it.

    Args:
        text: YAML or JSON, several documents.
        change: gets a document and its number from 1; a document that it returns as the same object stays as
            it was written.

    Raises:
        ManifestError: the text is too long, or is not YAML.
    """
    if len(text) > MAX_CHARS:
        raise ManifestError(f"expected at most {MAX_CHARS} characters, got {len(text)}")
    pieces: list[str] = []
    written = 0
    for number, (document, start, end) in enumerate(_documents(text), 1):
        new = change(document, number)
        if new is document:
            continue
        body = yaml.dump(new, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        between = text[written:start]
        if between and not between.endswith("\n"):
            between += "\n"
        pieces += [between, body]
        written = end
    return "".join(pieces) + text[written:]


def _documents(text: str) -> Iterator[tuple[Any, int, int]]:
    """Each document with the place of its content: after its `---`, and up to the next."""
    try:
        events = list(yaml.parse(text, Loader=_Loader))
        starts = [event for event in events if isinstance(event, yaml.DocumentStartEvent)]
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as exc:
        raise ManifestError(f"not YAML: {' '.join(str(exc).split())}") from None
    except RecursionError:
        raise ManifestError("not a manifest: it is nested too deeply") from None
    places = [_place(event) for event in starts]
    ends = [*(before for before, _ in places[1:]), len(text)]
    for document, (_, start), end in zip(documents, places, ends, strict=True):
        yield document, start, end


def _place(start: yaml.DocumentStartEvent) -> tuple[int, int]:
    """Before and after the dashes of a document."""
    before, after = start.start_mark, start.end_mark
    assert before is not None
    assert after is not None
    return before.index, after.index
