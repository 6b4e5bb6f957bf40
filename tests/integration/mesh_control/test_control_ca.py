"""The CA of the control plane, whole: TLS on loopback, TokenReview and Secret in the local API server."""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509

from certs import secret_store, workload
from certs.authority import Authority
from certs.credentials import ALPN_HTTP1, CredentialsError, Holder
from certs.keygen import make
from certs.verify import peer_identity
from certs.workload import take_bundle
from mesh_api.ca import TOKEN_AUDIENCE
from mesh_control.kube.client import Client
from mesh_control.kube.resources import SECRETS
from mesh_control.kube.reviews import Reviewed, review_token
from mesh_control.serve.ca import CaServer
from mesh_control.serve.ca_review import ReviewAuthenticator
from mesh_control.serve.ca_store import CaStore, CaStoreError, change, load
from mesh_control.serve.own_leaf import OwnLeaf
from tests.support.control_api import ControlApi, run_api, until
from tests.support.control_ca import CONTROL, DOMAIN, port_of, signer

SYSTEM = "triomesh-system"
CSR = make()[1].decode()


@dataclass
class Replica:
    """One control plane's CA."""

    client: Client
    store: CaStore
    leaf: OwnLeaf
    server: CaServer
    port: int
    pods: dict[tuple[str, str, str], tuple[str, ...]]
    notes: list[tuple[str, dict]] = field(default_factory=list)

    @property
    def bundle(self) -> str:
        return self.store.bundle_pem()


@asynccontextmanager
async def replica(api: ControlApi, *, lifetime_s: float = 3600.0) -> AsyncIterator[Replica]:
    """A CA that serves, with whatever it finds in the cluster."""
    rng = random.Random(1)
    pods: dict[tuple[str, str, str], tuple[str, ...]] = {}
    notes: list[tuple[str, dict]] = []

    def note(name: str, fields) -> None:
        notes.append((name, dict(fields)))

    async with api.admin() as client, trio.open_nursery() as nursery:
        store = CaStore(client, SYSTEM, DOMAIN, rng, on_note=note)
        await store.open()

        async def review(token: str) -> Reviewed:
            return await review_token(client, token, TOKEN_AUDIENCE)

        authenticator = ReviewAuthenticator(DOMAIN, review, lambda *pod: pods.get(pod))
        leaf = OwnLeaf(store, CONTROL, rng, lifetime_s=lifetime_s, on_event=note)
        server = CaServer(
            store, authenticator, lambda: leaf.holder.current, lifetime_s=lifetime_s, on_event=note
        )
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = port_of(listener)
        nursery.start_soon(store.follow)
        await nursery.start(leaf.run)
        await nursery.start(server.run, [listener])
        yield Replica(client, store, leaf, server, port, pods, notes)
        nursery.cancel_scope.cancel()


def with_replica(
    tmp_path: Path, test: Callable[[ControlApi, Replica], Awaitable[None]], **more: float
) -> None:
    async def main(api: ControlApi) -> None:
        await api.namespace("shop")
        for account in ("web", "db"):
            await api.account(account, "shop")
            await api.pod(f"{account}-1", "shop", account)
        async with replica(api, **more) as ca:
            await test(api, ca)

    run_api(tmp_path, main, 30)


def names(chain_pem: str) -> list[str]:
    leaf = x509.load_pem_x509_certificate(chain_pem.encode())
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_a_pod_gets_the_identity_of_its_service_account(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        token = await api.token("web", "shop", "web-1")
        asking = signer(ca.port, tmp_path, ca.bundle, token=token)
        answer = await asking.sign(CSR)
        assert names(answer.chain_pem) == ["spiffe://cluster.local/ns/shop/sa/web"]
        assert answer.bundle_pem == ca.bundle
        made = await workload.obtain(asking, DOMAIN)
        assert made.identity == "spiffe://cluster.local/ns/shop/sa/web"
        assert (ca.server.signed, ca.server.authenticator.reviews) == (2, 1)
        assert ca.server.authenticator.remembered == 1
        assert "signer" in ca.store.expiries()

    with_replica(tmp_path, test)


async def refused(ca: Replica, directory: Path, token: str, reason: str, message: str) -> None:
    answer = await signer(ca.port, directory, ca.bundle, token=token).sign(CSR)
    assert answer.chain_pem == ""
    assert re.search(message, answer.error), answer.error
    assert ca.server.refused[reason] == 1, ca.server.refused


def test_tokens_that_are_refused(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        other = await api.token("web", "shop", "web-1", audience="elsewhere")
        await refused(
            ca, tmp_path, other, "audience", r"expected a token for the audience triomesh-ca \(.*elsewhere"
        )
        unbound = await api.token("web", "shop")
        await refused(ca, tmp_path, unbound, "unbound", "expected one that is bound to a pod")
        await refused(ca, tmp_path, "made.up.token", "invalid", "the API server does not accept it")
        expired = await api.token("web", "shop", "web-1", seconds=-5)
        await refused(ca, tmp_path, expired, "expired", "the token has expired; the kubelet writes a new one")
        gone = await api.token("db", "shop", "db-1")
        await api.local.client.delete("pods", "db-1", "shop", grace_s=0)
        await refused(ca, tmp_path, gone, "gone", r"the token's pod is gone \(.*has been invalidated")
        assert ca.server.signed == 0

    with_replica(tmp_path, test)


def test_a_deleted_service_account_and_one_made_anew(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        tokens = [await api.token("web", "shop", "web-1") for _ in range(2)]
        await api.local.client.delete("serviceaccounts", "web", "shop")
        await refused(ca, tmp_path, tokens[0], "gone", r"the token's ServiceAccount is gone \(.*not found")
        await api.account("web", "shop")
        ca.server.refused.clear()
        await refused(ca, tmp_path, tokens[1], "gone", "the token's ServiceAccount was deleted and made anew")

    with_replica(tmp_path, test)


def test_a_token_is_taken_only_from_its_pods_address(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        pod = await api.local.client.get("pods", "web-1", "shop")
        key = ("shop", "web-1", pod["metadata"]["uid"])
        token = await api.token("web", "shop", "web-1")
        ca.pods[key] = ("10.244.0.9", "fd00::9")
        await refused(
            ca, tmp_path, token, "address", "it is of pod shop/web-1, which has not the address 127.0.0.1"
        )
        ca.pods[key] = ("127.0.0.1",)
        assert (await signer(ca.port, tmp_path, ca.bundle).sign(CSR)).chain_pem

    with_replica(tmp_path, test)


def test_the_control_planes_name_is_only_for_its_own_service_account(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        await api.account("triomesh-control", "shop")
        await api.pod("fake", "shop", "triomesh-control")
        token = await api.token("triomesh-control", "shop", "fake")
        answer = await signer(ca.port, tmp_path, ca.bundle, token=token).sign(CSR)
        assert names(answer.chain_pem) == ["spiffe://cluster.local/ns/shop/sa/triomesh-control"]
        await api.account("triomesh-control", SYSTEM)
        await api.pod("real", SYSTEM, "triomesh-control")
        token = await api.token("triomesh-control", SYSTEM, "real")
        answer = await signer(ca.port, tmp_path, ca.bundle, token=token).sign(CSR)
        assert names(answer.chain_pem) == [str(CONTROL)]

    with_replica(tmp_path, test)


def test_the_api_server_is_away(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        token = await api.token("web", "shop", "web-1")
        assert (await signer(ca.port, tmp_path, ca.bundle, token=token).sign(CSR)).chain_pem
        await api.stop()
        assert (await signer(ca.port, tmp_path, ca.bundle, token=token).sign(CSR)).chain_pem, "remembered"
        other = await api.token("db", "shop", "db-1")
        await refused(ca, tmp_path, other, "unreviewed", "it could not be reviewed: POST .*refused")
        await api.start()
        answer = await signer(ca.port, tmp_path, ca.bundle, token=other).sign(CSR)
        assert answer.chain_pem, "a review that failed is not remembered"

    with_replica(tmp_path, test)


class Answers:
    """A review that is counted."""

    def __init__(self, answer: Reviewed) -> None:
        self.answer = answer
        self.asked = 0

    async def __call__(self, token: str) -> Reviewed:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        return self.answer


def test_how_long_an_answer_is_remembered():
    import base64

    import msgspec

    from certs.service import Caller, Denied
    from mesh_api.ca import SignRequest

    good = Reviewed("system:serviceaccount:shop:web", (TOKEN_AUDIENCE,), "web-1", "u1")
    now = [1000.0]

    def token(exp: float) -> str:
        payload = base64.urlsafe_b64encode(msgspec.json.encode({"exp": exp})).decode().rstrip("=")
        return f"h.{payload}.s"

    async def main() -> None:
        review = Answers(good)
        authenticator = ReviewAuthenticator(DOMAIN, review, lambda *_: None, lambda: now[0])

        async def ask(text: str) -> None:
            await authenticator.authenticate(Caller("10.0.0.1"), SignRequest(csr_pem="", token=text))

        long, short = token(5000), token(1030)
        await ask(long)
        now[0] += 59
        await ask(long)
        assert review.asked == 1
        now[0] += 1
        await ask(long)
        assert review.asked == 2
        now[0] = 1000.0
        await ask(short)
        now[0] = 1031.0
        await ask(short)
        assert review.asked == 4
        for number in range(5000):
            await ask(f"t{number}")
        assert len(authenticator._known) == 4096
        review.answer = Reviewed(error="nope")
        for _ in range(3):
            with pytest.raises(Denied, match="nope"):
                await ask("bad")
        assert review.asked == 5005
        review.answer = Reviewed("system:serviceaccount:shop:web", (), "web-1", "u1")
        with pytest.raises(Denied, match="did not confirm"):
            await ask("unconfirmed")
        review.answer = Reviewed("alice", (TOKEN_AUDIENCE,), "web-1", "u1")
        with pytest.raises(Denied, match="expected a ServiceAccount, got the user 'alice'"):
            await ask("user")
        for wrong in ("", "a b\n", "é", "x" * 20_000):
            with pytest.raises(Denied, match="expected one of 1 to 16384"):
                await ask(wrong)

    trio.run(main)


def test_three_replicas_share_one_ca(tmp_path):
    async def test(api: ControlApi) -> None:
        await api.namespace("shop")
        await api.account("web", "shop")
        await api.pod("web-1", "shop", "web")
        bundles: list[str] = []

        async def one(number: int) -> None:
            async with replica(api) as ca:
                bundles.append(ca.bundle)
                token = await api.token("web", "shop", "web-1")
                directory = tmp_path / f"r{number}"
                directory.mkdir()
                assert (await signer(ca.port, directory, ca.bundle, token=token).sign(CSR)).chain_pem

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(one, number)
        assert len(bundles) == 3
        assert len(set(bundles)) == 1
        async with api.admin() as client:
            found = await client.get(SECRETS, "triomesh-ca", SYSTEM)
            assert set(found["data"]) == {
                "signer.pem",
                "signer.key",
                "bundle.pem",
                "trust-domain",
                "active-since",
            }

    run_api(tmp_path, test)


def test_a_secret_that_is_damaged_or_deleted_later_changes_nothing(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        before = ca.bundle
        await ca.client.patch(SECRETS, "triomesh-ca", SYSTEM, {"data": {"signer.key": "eA=="}})
        await until(lambda: any(name == "ca.unusable" for name, _ in ca.notes))
        assert "expected one private key" in dict(ca.notes)["ca.unusable"]["error"]
        ca.notes.clear()
        await ca.client.delete(SECRETS, "triomesh-ca", SYSTEM)
        await until(lambda: any(name == "ca.unusable" for name, _ in ca.notes))
        assert "deleted" in dict(ca.notes)["ca.unusable"]["error"]
        assert ca.bundle == before
        token = await api.token("web", "shop", "web-1")
        assert (await signer(ca.port, tmp_path, before, token=token).sign(CSR)).chain_pem

    with_replica(tmp_path, test)


def test_a_ca_that_cannot_be_used_says_why(tmp_path):
    async def test(api: ControlApi) -> None:
        async with api.admin() as client:
            store = CaStore(client, SYSTEM, "other.domain", random.Random(1))
            await store.open()
            second = CaStore(client, SYSTEM, DOMAIN, random.Random(1))
            with pytest.raises(
                CaStoreError, match=r"expected trust domain cluster\.local, got other\.domain"
            ):
                await second.open()
            await client.patch(SECRETS, "triomesh-ca", SYSTEM, {"data": {"bundle.pem": None}})
            with pytest.raises(
                CaStoreError, match=r"triomesh-system/triomesh-ca: expected the key bundle\.pem"
            ):
                await load(client, SYSTEM)

    run_api(tmp_path, test)


class Workload:
    """A sidecar's identity: renews by itself, and is told of bundles as on the discovery stream."""

    def __init__(self, name: str) -> None:
        self.holder = Holder()
        self.name = name

    async def run(self, ca: Replica, directory: Path, environment: str) -> None:
        asking = signer(ca.port, directory, environment)
        await workload.run(self.holder, asking, DOMAIN, random.Random(self.name))


def exchange(one: Workload, other: Workload) -> None:
    """A new connection from one to the other."""
    from certs.credentials import _handshake

    ours, theirs = one.holder.current, other.holder.current
    assert ours is not None
    assert theirs is not None
    client, server = _handshake(ours.client[ALPN_HTTP1], theirs.server)
    assert peer_identity(client.getpeercert(), DOMAIN).identity == theirs.identity
    assert peer_identity(server.getpeercert(), DOMAIN).identity == ours.identity


def test_the_root_is_rotated_under_load(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        first = ca.bundle
        pair = [Workload("web"), Workload("db")]
        directories = []
        for one in pair:
            directory = tmp_path / one.name
            directory.mkdir()
            (directory / "token").write_text(await api.token(one.name, "shop", f"{one.name}-1"))
            directories.append(directory)
        connections = 0

        async def load_() -> None:
            nonlocal connections
            while True:
                exchange(*pair)
                exchange(*reversed(pair))
                connections += 2
                await trio.sleep(0.002)

        async def told() -> None:
            """Every workload has the present bundle: by the stream and by the mounted file."""
            for one, directory in zip(pair, directories, strict=True):
                (directory / "bundle.pem").write_text(ca.bundle)
                await take_bundle(one.holder, ca.bundle)

        def renewed(since: list[int]) -> bool:
            return all(one.holder.swaps > n for one, n in zip(pair, since, strict=True))

        async with trio.open_nursery() as nursery:
            for one, directory in zip(pair, directories, strict=True):
                nursery.start_soon(one.run, ca, directory, first)
                await one.holder.wait_ready()
            nursery.start_soon(load_)
            following = Authority.create(DOMAIN, datetime.now(UTC))
            await change(ca.client, SYSTEM, lambda s: secret_store.stage(s, following, datetime.now(UTC)))
            await until(lambda: ca.bundle != first)
            await told()
            assert all(one.holder.current.bundle_pem.count("BEGIN") == 2 for one in pair)
            zero = timedelta()
            await change(ca.client, SYSTEM, lambda s: secret_store.activate(s, datetime.now(UTC), zero))
            await until(lambda: ca.store.authority().cert == following.cert)
            seen = [one.holder.swaps for one in pair]
            await until(lambda: renewed(seen))  # by their own half life, from the new signer
            await until(lambda: all(issuer(one) == following.cert.subject for one in pair))
            await until(lambda: issued_by(ca) == following.cert.subject)
            await change(ca.client, SYSTEM, lambda s: secret_store.retire(s, datetime.now(UTC), zero)[0])
            await until(lambda: ca.bundle.count("BEGIN") == 1)
            await told()
            seen = [one.holder.swaps for one in pair]
            await until(lambda: renewed(seen))
            assert all(one.holder.current.bundle_pem == following.bundle.to_pem().decode() for one in pair)
            assert all(one.holder.failures == 0 for one in pair)
            assert connections > 20
            nursery.cancel_scope.cancel()
        # who was left behind with the old root alone is refused, and says why
        answer = signer(ca.port, directories[0], first, file="none")
        with pytest.raises(workload.SignerError, match="certificate was refused, the token was not sent"):
            await answer.sign(CSR)

    with_replica(tmp_path, test, lifetime_s=2.0)


def issuer(one: Workload) -> x509.Name:
    assert one.holder.current is not None
    return x509.load_pem_x509_certificate(one.holder.current.chain_pem.encode()).issuer


def issued_by(ca: Replica) -> x509.Name:
    assert ca.leaf.holder.current is not None
    return x509.load_pem_x509_certificate(ca.leaf.holder.current.chain_pem.encode()).issuer


def test_a_change_in_between_is_taken_into_account(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        calls = 0

        def step(state: secret_store.CaState) -> secret_store.CaState:
            nonlocal calls
            calls += 1
            return secret_store.stage(state, Authority.create(DOMAIN, datetime.now(UTC)), datetime.now(UTC))

        await change(ca.client, SYSTEM, step)
        with pytest.raises(secret_store.SecretStoreError, match="waits already"):
            await change(ca.client, SYSTEM, step)
        assert calls == 2
        assert (await load(ca.client, SYSTEM)).waiting is not None
        await until(lambda: "next" in ca.store.expiries())

    with_replica(tmp_path, test)


def test_a_workload_told_of_a_bundle_without_its_root_keeps_what_it_has(tmp_path):
    async def test(api: ControlApi, ca: Replica) -> None:
        (tmp_path / "token").write_text(await api.token("web", "shop", "web-1"))
        one = Workload("web")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, ca, tmp_path, ca.bundle)
            before = await one.holder.wait_ready()
            other = Authority.create(DOMAIN, datetime.now(UTC)).bundle.to_pem().decode()
            with pytest.raises(CredentialsError):
                await take_bundle(one.holder, other)
            assert one.holder.current is before
            await until(lambda: one.holder.swaps == 2)
            assert one.holder.current.bundle_pem == ca.bundle
            nursery.cancel_scope.cancel()

    with_replica(tmp_path, test)
