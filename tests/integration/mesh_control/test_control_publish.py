"""The bundle's ConfigMaps, the webhook's certificate and caBundle, with the control plane's rights alone."""

import base64
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from certs import secret_store
from certs.authority import Authority
from mesh_control.kube.client import Client, Object
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import CONFIG_MAPS, MUTATING_WEBHOOKS
from mesh_control.serve.ca_bundle import BundlePublisher
from mesh_control.serve.ca_store import CaStore, change
from mesh_control.serve.webhook_bundle import WebhookBundle
from mesh_control.serve.webhook_tls import WebhookCertificate
from tests.support.control_api import ControlApi, run_api, until
from tests.support.control_ca import DOMAIN

SYSTEM = "triomesh-system"
NAME = "triomesh-control.triomesh-system.svc"


def rule(verbs: str, group: str, resource: str, name: str = "") -> Object:
    found: Object = {"verbs": verbs.split(","), "apiGroups": [group], "resources": [resource]}
    return found | ({"resourceNames": [name]} if name else {})


# What these parts need, and nothing more; creating cannot be bound to a name.
RULES = [
    rule("get,list,watch,patch", "", "secrets", "triomesh-ca"),
    rule("create", "", "secrets"),
    rule("list,watch,patch", "", "configmaps", "triomesh-ca-bundle"),
    rule("create", "", "configmaps"),
    rule("list,watch", "", "namespaces"),
    rule("list,watch", "", "pods"),
    rule(
        "list,watch,patch",
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        "triomesh-injector",
    ),
]


@asynccontextmanager
async def control(api: ControlApi, notes: list[tuple[str, dict]]) -> AsyncIterator[tuple[Client, CaStore]]:
    """A client with the rights above, and the CA."""
    await api.account("triomesh-control", SYSTEM)
    await api.allow("triomesh-control", SYSTEM, RULES)
    path = api.directory / "token"
    path.write_text(await api.token("triomesh-control", SYSTEM, audience=api.api_audience))
    async with api.pod_client(path) as client, trio.open_nursery() as nursery:
        store = CaStore(
            client,
            SYSTEM,
            DOMAIN,
            random.Random(1),
            on_note=lambda name, fields: notes.append((name, dict(fields))),
        )
        await store.open()
        nursery.start_soon(store.follow)
        yield client, store
        nursery.cancel_scope.cancel()


def with_control(
    tmp_path: Path, test: Callable[[ControlApi, Client, CaStore, list[tuple[str, dict]]], Awaitable[None]]
) -> None:
    async def main(api: ControlApi) -> None:
        notes: list[tuple[str, dict]] = []
        async with control(api, notes) as (client, store):
            await test(api, client, store, notes)

    run_api(tmp_path, main)


async def rotate(api: ControlApi) -> None:
    """Add a root."""
    async with api.admin() as client:
        now = datetime.now(UTC)
        await change(client, SYSTEM, lambda s: secret_store.stage(s, Authority.create(DOMAIN, now), now))


async def bundles(api: ControlApi) -> dict[str, str]:
    found = await api.local.client.list("configmaps", fields="metadata.name=triomesh-ca-bundle")
    return {one["metadata"]["namespace"]: one["data"].get("bundle.pem") for one in found.items}


async def published(api: ControlApi, expected: dict[str, str]) -> None:
    with trio.fail_after(8):
        while await bundles(api) != expected:
            await trio.sleep(0.01)


def test_the_bundle_is_where_pods_may_mount_it(tmp_path):
    async def test(api: ControlApi, client: Client, store: CaStore, notes) -> None:
        local = api.local.client
        await api.namespace("shop", triomesh_dev__injection="enabled")
        await api.namespace("plain")
        await api.account("one", "plain")
        publisher = BundlePublisher(client, SYSTEM, store, random.Random(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.run)
            bundle = store.bundle_pem()
            await published(api, {SYSTEM: bundle, "shop": bundle})
            # a pod that asks for a sidecar in a namespace that does not
            await api.pod("single", "plain", "one")
            await local.patch(
                "pods", "single", "plain", {"metadata": {"labels": {"triomesh.dev/inject": "true"}}}
            )
            await published(api, {SYSTEM: bundle, "shop": bundle, "plain": bundle})
            # a namespace labelled later; one that somebody changed; one that somebody deleted
            await api.namespace("later")
            label = {"metadata": {"labels": {"triomesh.dev/injection": "enabled"}}}
            await local.patch("namespaces", "later", "", label)
            await local.patch("configmaps", "triomesh-ca-bundle", "shop", {"data": {"bundle.pem": "forged"}})
            await local.delete("configmaps", "triomesh-ca-bundle", "plain")
            everywhere = {SYSTEM: bundle, "shop": bundle, "plain": bundle, "later": bundle}
            await published(api, everywhere)
            # a namespace that is no longer labelled may still have sidecars
            await local.patch(
                "namespaces", "shop", "", {"metadata": {"labels": {"triomesh.dev/injection": None}}}
            )
            await rotate(api)
            await until(lambda: store.bundle_pem() != bundle)
            await published(api, dict.fromkeys(everywhere, store.bundle_pem()))
            assert publisher.failed == 0
            nursery.cancel_scope.cancel()

    with_control(tmp_path, test)


def test_publishing_without_permission_says_what_is_missing_and_goes_on(tmp_path):
    async def test(api: ControlApi, client: Client, store: CaStore, notes) -> None:
        local = api.local.client
        roles, name = "clusterroles.rbac.authorization.k8s.io", f"{SYSTEM}-triomesh-control"
        await local.patch(roles, name, "", {"rules": [one for one in RULES if one != RULES[3]]})
        said: list[str] = []
        publisher = BundlePublisher(
            client,
            SYSTEM,
            store,
            random.Random(1),
            lambda name, fields: said.append(str(fields.get("error"))),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.run)
            await until(lambda: said)
            assert 'cannot create resource "configmaps" in API group "" in the namespace' in said[0]
            await local.patch(roles, name, "", {"rules": RULES})
            await published(api, {SYSTEM: store.bundle_pem()})
            nursery.cancel_scope.cancel()

    with_control(tmp_path, test)


def webhook(name: str, ca_bundle: str = "") -> Object:
    service = {"namespace": SYSTEM, "name": "triomesh-control", "path": "/inject"}
    return {
        "name": name,
        "clientConfig": {"service": service} | ({"caBundle": ca_bundle} if ca_bundle else {}),
        "sideEffects": "NoneOnDryRun",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Ignore",
        "rules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
        ],
    }


def test_the_webhooks_bundle_is_written_and_repaired(tmp_path):
    kind = str(MUTATING_WEBHOOKS)

    async def test(api: ControlApi, client: Client, store: CaStore, notes) -> None:
        local = api.local.client
        keeper = WebhookBundle(client, MUTATING_WEBHOOKS, "triomesh-injector", store, random.Random(1))

        async def have(bundle: str, count: int = 2) -> None:
            wanted = [base64.b64encode(bundle.encode()).decode()] * count
            with trio.fail_after(8):
                while True:
                    found = await local.get(kind, "triomesh-injector")
                    if [one["clientConfig"].get("caBundle") for one in found["webhooks"]] == wanted:
                        return
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            assert not keeper.right
            foreign = base64.b64encode(Authority.create(DOMAIN, datetime.now(UTC)).bundle.to_pem()).decode()
            hooks = [webhook("namespace.triomesh.dev"), webhook("pod.triomesh.dev", foreign)]
            await local.create(kind, {"metadata": {"name": "triomesh-injector"}, "webhooks": hooks})
            other = {"metadata": {"name": "somebody-else"}, "webhooks": [webhook("a.example.org", foreign)]}
            await local.create(kind, other)
            await have(store.bundle_pem())
            await until(lambda: keeper.right)
            forged = [{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": foreign}]
            await local.patch(kind, "triomesh-injector", "", forged, type="json")
            await have(store.bundle_pem())
            await local.delete(kind, "triomesh-injector")
            await until(lambda: not keeper.right)
            await local.create(kind, {"metadata": {"name": "triomesh-injector"}, "webhooks": hooks[:1]})
            await have(store.bundle_pem(), 1)
            before = store.bundle_pem()
            await rotate(api)
            await until(lambda: store.bundle_pem() != before)
            await have(store.bundle_pem(), 1)
            untouched = await local.get(kind, "somebody-else")
            assert untouched["webhooks"][0]["clientConfig"]["caBundle"] == foreign
            nursery.cancel_scope.cancel()
        assert keeper.repaired == 4

    with_control(tmp_path, test)


async def served(context: ssl.SSLContext, roots: str, name: str) -> dict:
    """What a client that trusts `roots` and expects `name` sees. Raises ssl.SSLError."""
    client_side, server_side = trio.testing.memory_stream_pair()
    trusting = ssl.create_default_context(cadata=roots)
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    client = trio.SSLStream(client_side, trusting, server_hostname=name)
    server = trio.SSLStream(server_side, context, server_side=True)

    failed: list[trio.BrokenResourceError] = []

    async def shake(side: trio.SSLStream) -> None:
        try:
            await side.do_handshake()
        except trio.BrokenResourceError as exc:
            failed.append(exc)
            await side.transport_stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake, server)
        nursery.start_soon(shake, client)
    if failed:
        raise failed[0]
    return client.getpeercert()


def test_the_webhooks_certificate_follows_the_ca(tmp_path):
    async def test(api: ControlApi, client: Client, store: CaStore, notes) -> None:
        certificate = WebhookCertificate(store, [NAME], random.Random(1), lifetime_s=4.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(certificate.run)
            await until(lambda: certificate.current)
            seen = await served(certificate.current, store.bundle_pem(), NAME)
            assert seen["subjectAltName"] == (("DNS", NAME),)
            first = certificate.current
            with pytest.raises(trio.BrokenResourceError) as wrong:
                await served(first, store.bundle_pem(), "elsewhere.triomesh-system.svc")
            assert "Hostname mismatch" in str(wrong.value.__cause__)
            await until(lambda: certificate.current is not first)  # at half life
            now = datetime.now(UTC)
            following = Authority.create(DOMAIN, now)
            zero = timedelta()
            async with api.admin() as admin:
                await change(
                    admin,
                    SYSTEM,
                    lambda s: secret_store.activate(secret_store.stage(s, following, now), now, zero),
                )
            await until(lambda: store.authority().cert == following.cert)
            with trio.fail_after(5):
                while True:
                    try:
                        await served(certificate.current, following.bundle.to_pem().decode(), NAME)
                        break
                    except trio.BrokenResourceError:
                        await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    with_control(tmp_path, test)


def test_other_objects_are_out_of_reach(tmp_path):
    async def test(api: ControlApi, client: Client, store: CaStore, notes) -> None:
        with pytest.raises(KubeError, match='cannot list resource "configmaps"'):
            await client.list(CONFIG_MAPS)

    with_control(tmp_path, test)
