"""A trust bundle that changes by itself: same key, new contexts."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
import trio
from certs_kit import DOMAIN, WEB, credentials, trio_test

from certs.authority import Authority
from certs.credentials import ALPN_HTTP1, CredentialsError, Holder, _handshake, open_server, rebuild
from certs.identity import SpiffeId
from certs.workload import run, take_bundle
from tests.support.control_ca import kept_credentials

NOW = datetime.now(UTC)
OLD = Authority.create(DOMAIN, NOW)
NEW = Authority.create(DOMAIN, NOW)
BOTH = OLD.bundle.add(NEW.bundle).to_pem().decode()
DB = SpiffeId(DOMAIN, "shop", "db")


def test_the_same_key_trusts_more():
    ours = kept_credentials(OLD, WEB)
    theirs = kept_credentials(NEW.with_bundle(OLD.bundle.add(NEW.bundle)), DB)
    again = rebuild(ours, BOTH, datetime.now(UTC).timestamp())
    assert again.chain_pem == ours.chain_pem
    assert again.bundle_pem == BOTH
    _handshake(again.client[ALPN_HTTP1], theirs.server)
    _handshake(theirs.client[ALPN_HTTP1], again.server)
    del ours
    assert rebuild(again, BOTH, datetime.now(UTC).timestamp()).identity == str(WEB), (
        "the key outlives the first credentials"
    )


def test_what_cannot_work_is_refused():
    with pytest.raises(CredentialsError, match="self-test"):
        rebuild(kept_credentials(OLD, WEB), NEW.bundle.to_pem().decode(), datetime.now(UTC).timestamp())
    forgotten = credentials(OLD)
    with pytest.raises(CredentialsError, match="key was kept"):
        rebuild(forgotten, BOTH, datetime.now(UTC).timestamp())
    with pytest.raises(CredentialsError, match="key was kept"):
        open_server(forgotten, "x")


@trio_test
async def test_a_bundle_is_taken_over_at_once():
    holder = Holder()
    await take_bundle(holder, BOTH)
    assert holder.current is None
    holder.swap(kept_credentials(OLD, WEB))
    await take_bundle(holder, BOTH)
    assert holder.current.bundle_pem == BOTH
    assert holder.swaps == 2
    await take_bundle(holder, BOTH)
    assert holder.swaps == 2, "nothing new"


@trio_test
async def test_the_bundle_survives_a_renewal_whose_answer_is_older():
    holder = Holder()
    await take_bundle(holder, BOTH)

    async def obtain(signer, trust_domain, wall):
        await trio.lowlevel.checkpoint()
        return kept_credentials(OLD, WEB)

    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda *, task_status: run(
                holder, None, DOMAIN, random.Random(1), obtain=obtain, task_status=task_status
            )
        )
        assert holder.current.bundle_pem == BOTH
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_bundle_without_our_root_has_a_new_leaf_asked_for():
    holder = Holder()
    signed_by = [OLD]

    async def obtain(signer, trust_domain, wall):
        await trio.lowlevel.checkpoint()
        return kept_credentials(signed_by[0], WEB)

    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda *, task_status: run(
                holder, None, DOMAIN, random.Random(1), obtain=obtain, task_status=task_status
            )
        )
        signed_by[0] = NEW
        with pytest.raises(CredentialsError):
            await take_bundle(holder, NEW.bundle.to_pem().decode())
        with trio.fail_after(5):
            while holder.swaps < 2:
                await trio.sleep(0.01)
        assert holder.current.bundle_pem == NEW.bundle.to_pem().decode()
        nursery.cancel_scope.cancel()
