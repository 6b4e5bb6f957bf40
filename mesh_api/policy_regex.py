"""Regular expressions of policies: RE2, whose time is linear in the text, with a bounded program."""

from __future__ import annotations

from typing import Any

import re2

MAX_PROGRAM = 2000
"""Instructions of one expression: some hundred bytes of text that are matched for each request."""
_MAX_MEMORY = 1024 * 1024

_options = re2.Options()
_options.max_mem = _MAX_MEMORY
_options.log_errors = False


def compile_regex(pattern: str) -> Any:
    """The compiled expression; callers use its `fullmatch`. Raises ValueError that says what is wrong."""
    try:
        compiled = re2.compile(pattern, _options)
    except re2.error as exc:
        told = exc.args[0] if exc.args else exc
        why = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
        raise ValueError(why) from None
    if compiled.programsize > MAX_PROGRAM:
        raise ValueError(
            f"it compiles to {compiled.programsize} instructions, more than {MAX_PROGRAM}; "
            "repeat or alternate less"
        )
    return compiled
