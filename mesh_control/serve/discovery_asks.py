"""Questions to one sidecar on its stream, and the pieces of their answers as they come."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from mesh_api.admin import MAX_ADMIN_BYTES
from mesh_api.discovery import MAX_ASKED, MAX_REPLY_PIECE, Ask, Page, Reply, answer_within
from mesh_ops.printable import clean

MAX_HELD_BYTES = 2 * MAX_ADMIN_BYTES
"""Of answers, over all sidecars of a replica."""
GIVE_UP_S = 30.0
"""A sidecar that owes an answer for so long after its deadline is cut off when it is asked again."""


class AskFailed(Exception):
    """There is no answer; the text says why, `status` is HTTP's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(slots=True)
class Memory:
    """Bytes of answers that a replica holds."""

    held: int = 0


@dataclass(slots=True, eq=False)
class _Question:
    ask: Ask
    until: float
    """Its deadline, on trio's clock."""
    answered: trio.Event = field(default_factory=trio.Event)
    wanted: bool = True
    """Somebody waits for the answer."""
    held: bytearray = field(default_factory=bytearray)
    size: int = 0
    failed: AskFailed | None = None


class Questions:
    """What one sidecar is asked; a question counts until it is answered, though nobody waits any more."""

    def __init__(self, memory: Memory, wake: Callable[[], None]) -> None:
        """`wake` is called when there is something in `outgoing`."""
        self.outgoing: deque[Ask] = deque()
        self._memory = memory
        self._wake = wake
        self._ids = itertools.count(1)
        self._open: dict[int, _Question] = {}
        self._ended = ""

    @property
    def open(self) -> int:
        """How many answers are owed."""
        return len(self._open)

    def stuck(self, now: float) -> bool:
        """Whether the sidecar owes an answer for so long that it will not come any more."""
        return any(now > question.until + GIVE_UP_S for question in self._open.values())

    async def ask(self, page: Page, arguments: Mapping[str, str]) -> bytes:
        """The JSON of the answer. Raises AskFailed, or ValueError for arguments of no sense."""
        within = answer_within(page, arguments)
        if self._ended:
            raise AskFailed(503, self._ended)
        if len(self._open) >= MAX_ASKED:
            raise AskFailed(503, f"the sidecar is busy with {len(self._open)} questions; try again")
        ask = Ask(next(self._ids), page, dict(arguments))
        question = self._open[ask.id] = _Question(ask, trio.current_time() + within)
        self.outgoing.append(ask)
        self._wake()
        try:
            with trio.move_on_at(question.until):
                await question.answered.wait()
            if question.failed is not None:
                raise question.failed
            if not question.answered.is_set():
                raise AskFailed(504, f"the sidecar did not answer within {within:g} s")
            return bytes(question.held)
        finally:
            question.wanted = False
            self._let_go(question)
            if ask in self.outgoing:  # never said: nothing is owed
                self.outgoing.remove(ask)
                self._open.pop(ask.id, None)

    def take(self, reply: Reply) -> None:
        """Take a piece of an answer. Raises ValueError for what answers nothing, or is too much."""
        question = self._open.get(reply.id)
        if question is None or question.ask in self.outgoing:
            raise ValueError(f"nothing was asked with id {reply.id}")
        if len(reply.body) > MAX_REPLY_PIECE:
            raise ValueError(f"expected pieces of at most {MAX_REPLY_PIECE} bytes, got {len(reply.body)}")
        question.size += len(reply.body)
        if question.size > MAX_ADMIN_BYTES:
            raise ValueError(f"expected an answer of at most {MAX_ADMIN_BYTES} bytes")
        if not reply.body and not reply.last:
            raise ValueError("expected pieces that are not empty, but for the last")
        if question.wanted:
            self._keep(question, reply)
        if reply.last or reply.error:
            del self._open[reply.id]
            question.answered.set()

    def end(self, reason: str) -> None:
        """The stream has ended: no answer will come."""
        self._ended = reason
        self.outgoing.clear()
        for question in self._open.values():
            question.failed = AskFailed(503, reason)
            question.answered.set()
        self._open.clear()

    def _keep(self, question: _Question, reply: Reply) -> None:
        if reply.error:
            question.failed = AskFailed(503, f"the sidecar says: {clean(reply.error, 1000)}")
        elif self._memory.held + len(reply.body) > MAX_HELD_BYTES:
            question.failed = AskFailed(503, "this replica holds too many answers at once; try again")
            question.wanted = False
            self._let_go(question)
            question.answered.set()
        else:
            question.held += reply.body
            self._memory.held += len(reply.body)

    def _let_go(self, question: _Question) -> None:
        self._memory.held -= len(question.held)
        question.held.clear()
