"""What the control plane asks of this sidecar: answers in pieces, between the stream's other messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

import trio

from mesh_api.admin import MAX_ADMIN_BYTES
from mesh_api.discovery import MAX_ASKED, MAX_REPLY_PIECE, Ask, Page, Reply, answer_within

Handler = Callable[[Mapping[str, str]], Awaitable[Iterable[bytes]]]
"""Gives the JSON of an answer in parts, each made when it is taken. It may wait, for as long as
`answer_within` says. Raises ValueError for arguments that it cannot use."""
Say = Callable[[Reply], Awaitable[None]]


class _Failed(Exception):
    """There is no answer; the text says why."""


class Answers:
    """The questions that are open on one stream."""

    def __init__(self, handlers: Mapping[Page, Handler], say: Say) -> None:
        """`say` sends a message, and may raise."""
        self._handlers = handlers
        self._say = say
        self._one_piece = trio.Lock()
        """However many questions are open, one piece waits to be sent: what else is to be said comes next."""
        self.open = 0

    def admit(self) -> bool:
        """Whether one more question can be open; `answer` it then."""
        if self.open >= MAX_ASKED:
            return False
        self.open += 1
        return True

    async def refuse(self, ask: Ask) -> None:
        """Answer a question that was not admitted."""
        await self._send(Reply(ask.id, error=f"expected at most {MAX_ASKED} questions at once"))

    async def answer(self, ask: Ask) -> None:
        """Answer a question. Raises only what `say` raises."""
        try:
            # The deadline is for the handler alone: a message that is cut off would spoil the stream.
            try:
                parts = iter(await self._asked(ask))
                await self._send_all(ask.id, parts)
            except _Failed as exc:
                await self._send(Reply(ask.id, error=str(exc)[:1000]))
        finally:
            self.open -= 1

    async def _asked(self, ask: Ask) -> Iterable[bytes]:
        handler = self._handlers.get(ask.page)
        if handler is None:
            raise _Failed(f"this sidecar does not answer {ask.page.value}")
        try:
            with trio.fail_after(answer_within(ask.page, ask.arguments)):
                return await handler(ask.arguments)
        except trio.TooSlowError:
            raise _Failed("the sidecar was too slow") from None
        except ValueError as exc:
            raise _Failed(str(exc)) from None
        except Exception as exc:  # a defect of one page must not end the stream
            raise _Failed(f"a defect of this sidecar: {exc!r}") from None

    async def _send_all(self, number: int, parts: Iterator[bytes]) -> None:
        piece = bytearray()
        total = 0
        while True:
            try:
                part = next(parts, None)
            except Exception as exc:  # as in `_asked`
                raise _Failed(f"a defect of this sidecar: {exc!r}") from None
            if part is None:
                break
            piece += part
            total += len(part)
            if total > MAX_ADMIN_BYTES:
                raise _Failed(f"expected an answer of at most {MAX_ADMIN_BYTES} bytes")
            while len(piece) > MAX_REPLY_PIECE:
                await self._send(Reply(number, bytes(piece[:MAX_REPLY_PIECE]), last=False))
                del piece[:MAX_REPLY_PIECE]
            await trio.lowlevel.checkpoint()
        await self._send(Reply(number, bytes(piece)))

    async def _send(self, reply: Reply) -> None:
        async with self._one_piece:
            await self._say(reply)
