"""The local cluster refuses what Kubernetes refuses: rights, unknown fields, webhooks it cannot trust."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.local_cluster import Cluster, pod

pytestmark = pytest.mark.e2e

# A mutating webhook in 20 lines: it labels what it sees.
WEBHOOK = """
import base64, http.server, json, ssl
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["content-length"])))
        patch = [{"op": "add", "path": "/metadata/labels", "value": {"seen": "yes"}}]
        response = {"uid": review["request"]["uid"], "allowed": True, "patchType": "JSONPatch",
                    "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        body = json.dumps(review)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())
server = http.server.HTTPServer(("", 8443), Hook)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def self_signed(name: str) -> tuple[str, str]:
    """A certificate for a DNS name that is its own CA, and its key; both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "webhook")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


def configuration(namespace: str, bundle: str, policy: str) -> dict[str, Any]:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": f"test-{namespace}"},
        "webhooks": [
            {
                "name": "label.triomesh.dev",
                "clientConfig": {
                    "service": {"namespace": namespace, "name": "hook", "port": 443, "path": "/"},
                    "caBundle": base64.b64encode(bundle.encode()).decode(),
                },
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["configmaps"],
                        "operations": ["CREATE"],
                    }
                ],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "failurePolicy": policy,
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 5,
            }
        ],
    }


def test_a_webhook_in_a_pod_is_called_and_its_ca_is_verified(cluster: Cluster, namespace: str) -> None:
    n = ["-n", namespace]
    certificate, key = self_signed(f"hook.{namespace}.svc")
    stranger, _ = self_signed(f"hook.{namespace}.svc")
    server = pod("hook", "python3", "/code/hook.py", namespace=namespace)
    spec = server["spec"]
    spec["volumes"] = [
        {"name": "code", "configMap": {"name": "code"}},
        {"name": "tls", "secret": {"secretName": "tls"}},
    ]
    spec["containers"][0]["volumeMounts"] = [
        {"name": "code", "mountPath": "/code"},
        {"name": "tls", "mountPath": "/tls"},
    ]
    spec["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8443}, "periodSeconds": 1}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "code", "namespace": namespace},
            "data": {"hook.py": WEBHOOK},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "tls", "namespace": namespace},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": certificate, "tls.key": key},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "hook", "namespace": namespace},
            "spec": {"selector": {"app": "hook"}, "ports": [{"port": 443, "targetPort": 8443}]},
        },
        server,
    )
    cluster.kubectl(*n, "wait", "--for=condition=Ready", "pod/hook", "--timeout=30s")
    cluster.until(
        lambda: any(
            e["conditions"]["ready"]
            for s in cluster.json(*n, "get", "endpointslices")["items"]
            for e in s["endpoints"] or ()
        ),
        "a ready endpoint",
    )
    try:
        cluster.apply(configuration(namespace, certificate, "Fail"))
        cluster.kubectl(*n, "create", "configmap", "good")
        assert cluster.json(*n, "get", "configmap", "good")["metadata"]["labels"] == {"seen": "yes"}

        cluster.apply(configuration(namespace, stranger, "Fail"))
        said = cluster.kubectl(*n, "create", "configmap", "refused", check=False)
        assert said.returncode == 1
        assert 'failed calling webhook "label.triomesh.dev"' in said.stderr
        assert "x509: certificate signed by unknown authority" in said.stderr

        cluster.apply(configuration(namespace, stranger, "Ignore"))
        cluster.kubectl(*n, "create", "configmap", "ignored")
        assert "labels" not in cluster.json(*n, "get", "configmap", "ignored")["metadata"]
    finally:
        cluster.kubectl("delete", "mutatingwebhookconfiguration", f"test-{namespace}")


def test_a_service_account_may_do_what_its_role_says(cluster: Cluster, namespace: str) -> None:
    n = ["-n", namespace]
    cluster.kubectl(*n, "create", "role", "reader", "--verb=get,list", "--resource=pods")
    cluster.kubectl(
        *n, "create", "rolebinding", "b", "--role=reader", f"--serviceaccount={namespace}:default"
    )
    # A pod's own token, over the network of the cluster, as any program in a pod uses it.
    script = (
        "T=$(cat /var/run/secrets/kubernetes.io/serviceaccount/token); "
        "C=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt; "
        f"U=https://kubernetes.default.svc/api/v1/namespaces/{namespace}; "
        'for R in pods secrets; do curl -s --cacert $C -H "Authorization: Bearer $T" $U/$R; echo; done'
    )
    cluster.apply(pod("ask", "sh", "-c", script, namespace=namespace, restartPolicy="Never"))
    cluster.kubectl(*n, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/ask", "--timeout=30s")
    decoder = json.JSONDecoder()
    text = cluster.kubectl(*n, "logs", "ask").stdout
    pods, end = decoder.raw_decode(text)
    refused, _ = decoder.raw_decode(text[end:].lstrip())
    assert pods["kind"] == "PodList"
    assert refused["code"] == 403
    assert refused["message"] == (
        f'secrets is forbidden: User "system:serviceaccount:{namespace}:default" cannot list resource'
        f' "secrets" in API group "" in the namespace "{namespace}"'
    )


def test_anonymous_and_wrong_credentials(cluster: Cluster) -> None:
    server = cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").stdout
    bare = ["--kubeconfig=/dev/null", f"--server={server}", "--insecure-skip-tls-verify"]
    said = cluster.kubectl(*bare, "--token=nonsense", "get", "pods", check=False)
    assert said.returncode == 1
    assert "You must be logged in to the server" in said.stderr


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        ("strict", 'strict decoding error: unknown field "dataa"'),
        ("warn", 'Warning: unknown field "dataa"'),
        ("ignore", ""),
    ],
)
def test_unknown_fields(cluster: Cluster, namespace: str, validation: str, expected: str) -> None:
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": namespace},
        "dataa": {"a": "b"},
    }
    said = cluster.kubectl(
        "create", f"--validate={validation}", "-f", "-", stdin=json.dumps(made), check=False
    )
    assert said.returncode == (1 if validation == "strict" else 0)
    assert expected in said.stderr


def test_packet_loss_and_delay_are_asked_for_on_the_pod(cluster: Cluster, namespace: str) -> None:
    n = ["-n", namespace]
    lossy = pod("lossy", "sleep", "1000", namespace=namespace)
    lossy["metadata"]["annotations"] = {"local.triomesh.dev/packet-loss-percent": "100"}
    wrong = pod("wrong", "sleep", "1000", namespace=namespace)
    wrong["metadata"]["annotations"] = {"local.triomesh.dev/packet-loss-percent": "all"}
    cluster.apply(lossy, wrong)
    cluster.kubectl(*n, "wait", "--for=condition=Ready", "pod/lossy", "--timeout=30s")
    ip = cluster.json(*n, "get", "pod", "lossy")["status"]["podIP"]
    # Nothing listens there: without loss the answer is a refusal at once.
    dial = f"import socket; socket.create_connection(('{ip}', 80), timeout=1)"
    cluster.apply(pod("dial", "python3", "-c", dial, namespace=namespace, restartPolicy="Never"))
    cluster.kubectl(*n, "wait", "--for=jsonpath={.status.phase}=Failed", "pod/dial", "--timeout=30s")
    assert "TimeoutError" in cluster.kubectl(*n, "logs", "dial").stdout
    cluster.until(
        lambda: "expected a number, not 'all'" in cluster.kubectl(*n, "get", "events").stdout, "the event"
    )
