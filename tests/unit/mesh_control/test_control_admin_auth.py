"""What the admin port remembers of tokens, and for how long."""

import base64
import json

import pytest
import trio
import trio.testing

from mesh_api.admin import ADMIN_AUDIENCE
from mesh_control.kube.errors import KubeError
from mesh_control.kube.reviews import Reviewed
from mesh_control.serve import admin_auth
from mesh_control.serve.admin_auth import AdminAuthenticator, Denied, Rights

VIEWER = Reviewed("system:serviceaccount:home:triomesh-viewer", (ADMIN_AUDIENCE,))
OPERATOR = Reviewed("system:serviceaccount:home:triomesh-operator", (ADMIN_AUDIENCE,))


class World:
    def __init__(self, **tokens):
        self.tokens = tokens
        self.now = 1000.0
        self.auth = AdminAuthenticator("home", self.review, lambda: self.now)

    async def review(self, token):
        await trio.lowlevel.checkpoint()
        found = self.tokens.get(token.partition(".")[0], Reviewed(error="unknown"))
        if isinstance(found, Exception):
            raise found
        return found

    async def status(self, token, needed=Rights.READ):
        try:
            await self.auth.check(token, needed)
        except Denied as exc:
            return exc.status
        return 200


def on_mock_clock(test):
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("reviewed", "reads", "changes"),
    [
        (VIEWER, 200, 403),
        (OPERATOR, 200, 200),
        (Reviewed(VIEWER.username, ("other",)), 401, 401),
        (Reviewed(VIEWER.username), 401, 401),
        (Reviewed("system:serviceaccount:shop:triomesh-viewer", (ADMIN_AUDIENCE,)), 401, 401),
        (Reviewed("system:serviceaccount:home:triomesh-viewer2", (ADMIN_AUDIENCE,)), 401, 401),
        (Reviewed("triomesh-viewer", (ADMIN_AUDIENCE,)), 401, 401),
        (Reviewed(error="expired"), 401, 401),
        (KubeError(0, "Unreachable", "no answer"), 503, 503),
    ],
)
def test_who_may_do_what(reviewed, reads, changes):
    async def main():
        world = World(t=reviewed)
        assert await world.status("t") == reads
        assert await world.status("t", Rights.CHANGE) == changes

    on_mock_clock(main)


def test_what_is_no_token_is_not_reviewed():
    async def main():
        world = World()
        for token in ("", "ä", "a\nb", "a" * 7000):
            assert await world.status(token) == 401
        assert world.auth.reviews == 0

    on_mock_clock(main)


def test_answers_are_remembered_for_a_minute_and_never_past_the_token_s_end():
    async def main():
        payload = base64.urlsafe_b64encode(json.dumps({"exp": 1010}).encode()).decode().rstrip("=")
        world = World(good=VIEWER, short=VIEWER)
        for token, kept in (("good", 60), (f"short.{payload}.x", 10), ("bad", 5)):
            begun, world.now = world.auth.reviews, 1000.0
            await world.status(token)
            world.now += kept - 0.1
            await world.status(token)
            assert world.auth.reviews == begun + 1
            world.now += 0.2
            await world.status(token)
            assert world.auth.reviews == begun + 2

    on_mock_clock(main)


def test_a_failed_review_is_not_remembered():
    async def main():
        world = World(t=KubeError(0, "Unreachable", "no answer"))
        assert await world.status("t") == 503
        world.tokens["t"] = VIEWER
        assert await world.status("t") == 200

    on_mock_clock(main)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(admin_auth, "REMEMBERED", 3)

    async def main():
        world = World()
        for number in range(10):
            await world.status(str(number))
        assert len(world.auth._bad) == 3

    on_mock_clock(main)


def test_reviews_at_once_are_bounded_have_a_deadline_and_leave_nothing():
    async def main():
        world = World()
        under_way = 0

        async def stuck(token):
            nonlocal under_way
            under_way += 1
            try:
                await trio.sleep_forever()
            finally:
                under_way -= 1

        world.auth._review = stuck
        statuses = []

        async def ask(number):
            statuses.append(await world.status(str(number)))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
            assert under_way == admin_auth.CONCURRENT
        assert statuses == [503] * 10
        with trio.move_on_after(1):
            await world.status("x")
        assert under_way == 0
        assert world.auth._slots.value == admin_auth.CONCURRENT

    on_mock_clock(main)


def test_the_same_token_on_many_connections_is_reviewed_once_a_slot(monkeypatch):
    monkeypatch.setattr(admin_auth, "CONCURRENT", 1)

    async def main():
        world = World(t=VIEWER)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(world.status, "t")
        assert world.auth.reviews == 1

    on_mock_clock(main)
