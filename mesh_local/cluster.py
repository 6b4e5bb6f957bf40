"""The runtime: one process that is the API server, the controllers, the node and its network.

Start order: the node's network, database and keys, the API server with the objects that every cluster has,
the controllers, DNS and Service rules, the kubelet. Each part sees the API as its own user. Cancelling stops
all of it; containers go on running until `down` removes them or the next start adopts them.
"""

import logging
import logging.handlers
import random
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

import trio

from mesh_local import bootstrap
from mesh_local.apiserver.admission.chain import ChainOptions, builtin_plugins
from mesh_local.apiserver.admission.webhook_client import WebhookClient
from mesh_local.apiserver.admission.webhooks import WebhookCaller
from mesh_local.apiserver.api import Api
from mesh_local.apiserver.auth.authenticator import ClusterAuthenticator
from mesh_local.apiserver.auth.bootstrap import (
    PROXY,
    SCHEDULER,
    bootstrap_objects,
    controller_user,
    kubelet_user,
)
from mesh_local.apiserver.auth.endpoints import endpoints
from mesh_local.apiserver.auth.escalation import EscalationCheck
from mesh_local.apiserver.auth.pki import Pki, PkiError, write_kubeconfig
from mesh_local.apiserver.auth.rbac import RbacAuthorizer
from mesh_local.apiserver.auth.tokens import TokenAuthority
from mesh_local.apiserver.client import LocalClient
from mesh_local.apiserver.core import Core
from mesh_local.apiserver.expiry import expire_events
from mesh_local.apiserver.face.app import App
from mesh_local.apiserver.face.server import Server, server_context
from mesh_local.apiserver.proxy import ProxyEndpoint
from mesh_local.apiserver.registry import Registry
from mesh_local.apiserver.service_routes import ServiceResolver
from mesh_local.apiserver.store import Store, StoreError
from mesh_local.apiserver.types import User
from mesh_local.client import Client
from mesh_local.controllers.events import Recorder
from mesh_local.controllers.informer import Informers
from mesh_local.controllers.run import run_controllers
from mesh_local.dns import objects as dns_objects
from mesh_local.dns.records import Zones
from mesh_local.dns.server import ClusterNames, run_cluster_dns
from mesh_local.kinds.builtin import BUILTIN
from mesh_local.kubelet.kubelet import run_kubelet
from mesh_local.kubelet.logs import PodLogs
from mesh_local.kubelet.runtime import Runtime
from mesh_local.kubelet.types import KubeletOptions, Sources
from mesh_local.lifecycle import control, process
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, condition, dig
from mesh_local.network import namespace
from mesh_local.network.namespace import HostDialer
from mesh_local.network.node import NetworkOptions, NodeNetwork
from mesh_local.network.service_proxy import ServiceProxy
from mesh_local.network.types import NetworkError
from mesh_local.settings import STATE_ROOT, Choices, Places, SettingsError, read_choices

NODE = "node1"
ADMIN = User("kubernetes-admin", groups=("system:masters", "system:authenticated"))
SLICES = "endpointslices.discovery.k8s.io"
LOG_BYTES = 5_000_000
# How long clients have to see the end of their watches and answers.
END_S = 2.0
_log = logging.getLogger("mesh_local")

Say = Callable[[str], None]


def run(places: Places, progress: TextIO) -> int:
    """Run the cluster until SIGTERM or SIGINT; progress is one line for each step, then `ready`.

    Returns:
        the exit code: 0 after a signal, 2 when it could not start or go on (the last line says why).
    """
    _log_to(places)
    try:
        choices = read_choices(places)
        if choices is None:
            raise SettingsError(f"there is no cluster {places.name!r}; make it with: meshctl local up")
        with process.recorded(places):
            trio.run(_until_signal, places, choices, lambda text: print(text, file=progress))
    except BaseException as raised:
        exc = _alone(raised)
        if isinstance(exc, SettingsError | StoreError | PkiError | NetworkError | OSError):
            _log.error("%s", exc)
            _try_print(f"error: {exc}", progress)
            return 2
        _log.exception("the runtime ends on a defect of its own")
        _try_print(f"error: the runtime failed; see {places.log}", progress)
        raise
    return 0


def _alone(exc: BaseException) -> BaseException:
    """What nurseries have wrapped, if it is one exception."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _try_print(text: str, progress: TextIO) -> None:
    try:
        print(text, file=progress)
    except (OSError, ValueError):  # `up` has gone
        return


def _log_to(places: Places) -> None:
    handler = logging.handlers.RotatingFileHandler(places.log, maxBytes=LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpcore", "hypercorn", "pyroute2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


async def _until_signal(places: Places, choices: Choices, say: Say) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            cluster = Cluster(places, choices, say)
            nursery.start_soon(cluster.run)
            async for number in signals:
                _log.info("ending on %s", signal.Signals(number).name)
                with trio.move_on_after(END_S):
                    await cluster.end()
                nursery.cancel_scope.cancel()
                break


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class _Server:
    """The API server's parts that others need."""

    api: Api
    store: Store
    app: App
    pki: Pki

    def client(self, user: User) -> Client:
        return LocalClient(self.api, user)


class Cluster:
    """One run of a cluster."""

    def __init__(self, places: Places, choices: Choices, say: Say) -> None:
        self._places = places
        self._choices = choices
        self._say = say
        self._rng = random.Random()
        self._ready = False
        self._stop = trio.Event()
        self._served = trio.Event()
        self._store: Store | None = None

    async def end(self) -> None:
        """End watches and connections as a server does that is going away; the caller bounds the wait."""
        if self._store is not None:
            self._store.end_watches()
        self._stop.set()
        if self._ready:
            await self._served.wait()

    async def run(self) -> None:
        """Start everything and go on until cancelled."""
        places = self._places
        network = NodeNetwork(NetworkOptions(places.name, places.network, self._choices.ip_family))
        self._say("preparing the node's network")
        await network.up()
        runtime = Runtime(places.pods)
        async with self._server(network, runtime) as server, trio.open_nursery() as nursery:
            self._say(f"starting the API server on {self._url}")
            await nursery.start(self._serve, server, network)
            nursery.start_soon(expire_events, server.store, utc_now)
            await nursery.start(control.serve, places, lambda: self._status(server))
            self._say("creating the objects of every cluster")
            await self._create_first_objects(server.client(ADMIN), network)
            self._say("starting controllers and scheduler")
            await nursery.start(self._control, server)
            self._say("starting the node: Service addresses, DNS, kubelet")
            await self._start_node(nursery, server, network, runtime)
            self._ready = True
            _log.info("ready")
            self._say("ready")

    @property
    def _url(self) -> str:
        return f"https://127.0.0.1:{self._choices.api_port}"

    # -- API server ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _server(self, network: NodeNetwork, runtime: Runtime) -> AsyncIterator[_Server]:
        """Everything of the API server but its sockets."""
        pki = Pki(self._places.pki, utc_now())
        store = self._store = Store(self._places.database)
        try:
            registry = Registry(BUILTIN)
            authorizer = RbacAuthorizer(store, lambda: store.version)
            tokens = TokenAuthority(pki.token_key(), store, utc_now, self._rng)
            authenticator = ClusterAuthenticator(tokens)
            resolver = ServiceResolver(store, network.dialer(), self._rng)
            webhooks = WebhookCaller(
                store, WebhookClient(resolver, HostDialer()), lambda: registry.kinds, self._rng
            )
            options = ChainOptions(self._rng, tuple(str(f.services) for f in network.families))
            plugins = [*builtin_plugins(store, options, webhooks), EscalationCheck(authorizer)]
            core = Core(
                store=store,
                registry=registry,
                authorizer=authorizer,
                plugins=plugins,
                now=utc_now,
                rng=self._rng,
                log_source=PodLogs(runtime),
            )
            api = Api(core)
            for (resource, subresource), endpoint in endpoints(store, authenticator, authorizer).items():
                api.register(resource, subresource, endpoint)
            app = App(api, authenticator, f"127.0.0.1:{self._choices.api_port}")
            proxy = ProxyEndpoint(store, resolver)
            for resource in ("services", "pods"):
                app.register(resource, "proxy", proxy)
            write_kubeconfig(
                self._places.kubeconfig,
                self._url,
                pki.ca.certificate,
                pki.client("admin", ADMIN.name, ("system:masters",)),
                cluster=f"triomesh-{self._places.name}",
                user=f"admin@triomesh-{self._places.name}",
            )
            yield _Server(api, store, app, pki)
        finally:
            store.close()

    async def _serve(
        self,
        server: _Server,
        network: NodeNetwork,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on the host's loopback for kubectl and in the node's namespace for pods."""
        inside = [
            await namespace.open_listener(network.netns, ip, bootstrap.API_PORT) for ip in network.node_ips
        ]
        listeners = [await _listen(self._choices.api_port), *inside]
        names = ["localhost", "127.0.0.1", "::1", *network.node_ips]
        names += [bootstrap.api_ip(family) for family in network.families]
        names += ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        names.append("kubernetes.default.svc.cluster.local")
        server.pki.server(names)
        pki = server.pki.directory
        context = server_context(pki / "apiserver.crt", pki / "apiserver.key", server.pki.ca_path)
        await Server(server.app, context).run(listeners, self._stop, task_status=task_status)
        self._served.set()

    async def _create_first_objects(self, client: Client, network: NodeNetwork) -> None:
        """Create what is absent."""
        for obj in bootstrap.namespaces():
            await _ensure(client, "namespaces", obj)
        for obj in bootstrap_objects():
            kind = "clusterroles" if obj["kind"] == "ClusterRole" else "clusterrolebindings"
            await _ensure(client, f"{kind}.rbac.authorization.k8s.io", obj)
        await _ensure(client, "servicecidrs.networking.k8s.io", bootstrap.service_cidr(network.families))
        for service in (bootstrap.api_service(network.families), dns_objects.service(network.families)):
            await _ensure(client, "services", service)
        for family in network.families:
            for made in (bootstrap.api_endpoint_slice(family), dns_objects.endpoint_slice(family)):
                await _ensure(client, SLICES, made)

    # -- control loops and node ---------------------------------------------------------------------------

    async def _control(
        self, server: _Server, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        def client_for(name: str) -> Client:
            if name == "kube-scheduler":
                return server.client(SCHEDULER)
            return server.client(controller_user(name))

        await run_controllers(
            client_for,
            now=utc_now,
            rng=self._rng,
            root_ca_pem=server.pki.ca.certificate.decode(),
            kinds=lambda: server.api.core.registry.kinds,
            host=socket.gethostname(),
            task_status=task_status,
        )

    async def _start_node(
        self, nursery: trio.Nursery, server: _Server, network: NodeNetwork, runtime: Runtime
    ) -> None:
        proxied = Informers(server.client(PROXY), self._rng)
        client = server.client(kubelet_user(NODE))
        seen = Informers(client, self._rng)
        proxy = ServiceProxy(network, proxied.of("services"), proxied.of(SLICES))
        zones = Zones.of_cluster("cluster.local", network.families)
        names = ClusterNames(zones, proxied.of("services"), proxied.of(SLICES), seen.of("pods"))
        sources = Sources(seen.of("pods"), seen.of("configmaps"), seen.of("secrets"), seen.of("services"))
        recorder = Recorder(client, "kubelet", host=NODE, now=utc_now, rng=self._rng)
        options = KubeletOptions(
            NODE,
            self._places.pods,
            network.netns,
            network.node_ips,
            dns_ips=network.dns_ips,
            prefix=self._places.prefix,
            hidden=(STATE_ROOT,),
        )
        for informers in (proxied, seen):
            nursery.start_soon(informers.run)
        nursery.start_soon(recorder.run)
        nursery.start_soon(proxy.run)
        await nursery.start(run_cluster_dns, network, names)
        dialer = network.dialer()
        await nursery.start(run_kubelet, options, client, network, dialer, recorder, sources, runtime)

    # -- status -------------------------------------------------------------------------------------------

    def _status(self, server: _Server) -> control.Status:
        pods = server.store.list("pods")
        return control.Status(
            ready=self._ready,
            server=self._url,
            ip_family=self._choices.ip_family,
            namespaces=len(server.store.list("namespaces")),
            pods=dict(Counter(_word(pod) for pod in pods)),
        )


def _word(pod: Object) -> str:
    """One word for the state of a pod."""
    ready = condition(pod, "Ready")
    if ready is not None and ready.get("status") == "True":
        return "ready"
    return str(dig(pod, "status", "phase", default="Pending")).lower()


async def _listen(port: int) -> trio.SocketListener:
    try:
        return (await trio.open_tcp_listeners(port, host="127.0.0.1"))[0]
    except OSError as exc:
        raise SettingsError(f"the API server cannot listen on 127.0.0.1:{port}: {exc.strerror}") from exc


async def _ensure(client: Client, resource: str, obj: Object) -> None:
    try:
        await client.create(resource, obj)
    except ApiError as exc:
        if exc.reason != "AlreadyExists":
            raise
