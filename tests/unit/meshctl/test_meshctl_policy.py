"""`meshctl policy`: what options change, what is refused with which words, what holds and who says so."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from mesh_api.policy import read_policy
from mesh_api.policy_types import TrafficPolicy
from mesh_control.compile.native import parts
from mesh_control.index.levels import Levels
from mesh_proxy.policy.routing import Caller, Router
from meshctl import apply as cluster
from meshctl import policy_find
from meshctl.errors import KubeError, MeshctlError
from meshctl.main import cli
from meshctl.policy_edit import edited
from meshctl.policy_explain import DEFAULTS
from meshctl.policy_trial import Request, tried
from tests.support.meshctl_fake import FakeKube

Object = dict[str, Any]
META = {"namespace": "shop", "resourceVersion": "5"}


class Cluster(FakeKube):
    """A cluster that takes writes; `others` write first so many times."""

    def __init__(self, *objects: Object) -> None:
        super().__init__(*objects)
        self.others = 0

    def create(self, obj: Object) -> Object:
        self.objects.append(obj)
        return obj

    def replace(self, obj: Object) -> Object:
        if self.others:
            self.others -= 1
            raise KubeError("the object has been modified", 409, "Conflict")
        name = obj["metadata"]["name"]
        self.objects = [
            each for each in self.objects if each["metadata"]["name"] != name or each["kind"] != obj["kind"]
        ]
        self.objects.append(obj)
        return obj

    def delete(self, obj: Object) -> bool:
        self.objects.remove(obj)
        return True

    def policy(self, name: str = "reviews") -> Object:
        found = self.find("triomesh.dev/v1alpha1", "TrafficPolicy", name, "shop")
        assert found is not None
        return found

    def items(self, *args: Any, labels: str = "", **kwargs: Any) -> list[Object]:
        found = super().items(*args, **kwargs)
        wanted = [item.partition("=") for item in labels.split(",") if item]
        return copy.deepcopy(
            [
                each
                for each in found
                if all((each["metadata"].get("labels") or {}).get(k) == v for k, _, v in wanted)
            ]
        )


def service(name: str = "reviews") -> Object:
    spec = {"selector": {"app": name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, **META}, "spec": spec}


def pod(version: str) -> Object:
    owner = {"kind": "ReplicaSet", "name": f"reviews-{version}-abc", "controller": True}
    labels = {"app": "reviews", "version": version, "pod-template-hash": "abc"}
    meta = {"name": f"r-{version}", "namespace": "shop", "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": {"phase": "Running"}}


def policy(spec: Object, name: str = "reviews", kind: str = "TrafficPolicy", **meta: Any) -> Object:
    return {
        "apiVersion": "triomesh.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, **META, "creationTimestamp": "2026-01-01T00:00:00Z", **meta},
        "spec": {"target": {"service": "reviews"}, **spec} if kind == "TrafficPolicy" else spec,
    }


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    found = Cluster(namespace, service(), service("ratings"), pod("v1"), pod("v2"))
    for module in ("meshctl.context", "meshctl.commands.policy_test"):
        monkeypatch.setattr(f"{module}.connect", lambda kubeconfig, context: found)
    return found


def meshctl(*arguments: str, stdin: str | None = None) -> Result:
    done = CliRunner().invoke(cli, ["policy", *arguments], prog_name="meshctl", input=stdin)
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


EXAMPLE = [
    *("set", "reviews", "-n", "shop", "--subset", "v1=version:v1", "--subset", "v2=version:v2"),
    *("--split", "v1=90,v2=10", "--timeout", "2s", "--retries", "2", "--retry-on", "5xx,connect-failure"),
    *("--max-requests", "100", "--eject-after", "5"),
]


def test_set_makes_a_policy(shop: Cluster) -> None:
    done = meshctl(*EXAMPLE)
    assert (done.exit_code, done.stdout) == (0, "trafficpolicy.triomesh.dev/reviews created\n")
    assert done.stderr == ""
    made = shop.policy()
    assert made["spec"] == {
        "target": {"service": "reviews"},
        "subsets": {"v1": {"labels": {"version": "v1"}}, "v2": {"labels": {"version": "v2"}}},
        "timeouts": {"request": "2s"},
        "retries": {"attempts": 2, "retryOn": ["5xx", "connect-failure"]},
        "circuitBreaker": {"maxRequests": 100},
        "outliers": {"consecutive5xx": 5},
        "routes": [{"to": [{"subset": "v1", "weight": 90}, {"subset": "v2", "weight": 10}]}],
    }
    assert isinstance(read_policy("TrafficPolicy", made), TrafficPolicy)


def test_set_changes_only_what_is_named_and_tries_again(shop: Cluster) -> None:
    beta = {"name": "beta", "match": [{"path": {"prefix": "/b"}}], "to": [{"subset": "v2"}], "timeout": "1s"}
    shop.objects.append(
        policy({"subsets": {"v2": {"labels": {"version": "v2"}}}, "routes": [beta, {"to": [{}]}]}, "own-name")
    )
    shop.others = 2
    done = meshctl("set", "reviews", "-n", "shop", "--split", "v2=1", "--balancer", "round-robin")
    assert done.stdout == "trafficpolicy.triomesh.dev/own-name configured\n"
    spec = shop.policy("own-name")["spec"]
    assert spec["routes"] == [beta, {"to": [{"subset": "v2", "weight": 1}]}]
    assert spec["loadBalancer"] == {"algorithm": "round-robin"}
    assert meshctl("set", "reviews", "-n", "shop", "--balancer", "round-robin").stdout.endswith("unchanged\n")
    done = meshctl(
        "set",
        "reviews",
        "-n",
        "shop",
        "--fault-abort",
        "10:503",
        "--fault-delay",
        "0.5:2s",
        "--route",
        "beta",
    )
    assert done.exit_code == 0
    fault = {"abort": {"percent": 10, "status": 503}, "delay": {"percent": 0.5, "fixed": "2s"}}
    assert shop.policy("own-name")["spec"]["routes"][0]["fault"] == fault
    done = meshctl("set", "reviews", "-n", "shop", "--fault-abort", "1:grpc-14", "--http-version", "2")
    assert done.exit_code == 0
    spec = shop.policy("own-name")["spec"]
    assert spec["routes"][1]["fault"] == {"abort": {"percent": 1, "grpcStatus": 14}}
    assert spec["connection"] == {"httpVersion": "2"}
    done = meshctl("set", "reviews", "-n", "shop", "--unset", "loadBalancer.algorithm")
    assert done.exit_code == 0
    assert "loadBalancer" not in shop.policy("own-name")["spec"]
    shop.others = 99
    done = meshctl("set", "reviews", "-n", "shop", "--timeout", "1s")
    assert done.exit_code == 2
    assert "others keep changing it; 5 tries" in done.stderr


def test_set_dry_run_prints_what_would_be(shop: Cluster) -> None:
    done = meshctl(*EXAMPLE, "--dry-run", "-o", "yaml")
    assert isinstance(read_policy("TrafficPolicy", yaml.safe_load(done.stdout)), TrafficPolicy)
    assert json.loads(meshctl(*EXAMPLE, "--dry-run", "-o", "json").stdout) == yaml.safe_load(done.stdout)
    assert not shop.items("triomesh.dev/v1alpha1", "TrafficPolicy")


def test_a_subset_that_selects_no_pod_is_a_warning(shop: Cluster) -> None:
    done = meshctl("set", "reviews", "-n", "shop", "--subset", "v3=version:v3")
    assert done.exit_code == 0
    assert done.stderr == (
        "warning: subset v3 (version=v3) selects none of the 2 pods of reviews; "
        "they have version=v1 and version=v2\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "set review -n shop --timeout 2s",
            "there is no Service 'review' in namespace shop; did you mean 'reviews'?",
        ),
        (
            "set zzz -n shop --timeout 2s",
            "there is no Service 'zzz' in namespace shop; there are ratings and reviews",
        ),
        ("set reviews -n shp --timeout 2s", "there is no namespace 'shp'; did you mean 'shop'?"),
        ("set reviews -n shop", "nothing to set"),
        (
            "set reviews -n shop --timeout 2",
            "TrafficPolicy shop/reviews: spec.timeouts.request: expected a duration with its unit, such as "
            "500ms, 2s, 5m or 1h, got '2'; write 2s for seconds",
        ),
        (
            "set reviews -n shop --subset canary=version:v1 --split canry=1",
            "--split canry=1: there is no subset 'canry'; there are canary; did you mean 'canary'?",
        ),
        (
            "set reviews -n shop --split v1=1",
            "there is no subset 'v1'; none is defined; define it with --subset",
        ),
        (
            "set reviews -n shop --subset v1=version:v1 --split v1=0",
            "spec.routes[0].to: expected weights with a sum above 0, got 0",
        ),
        ("set reviews -n shop --split v1", "expected SUBSET=WEIGHT[,SUBSET=WEIGHT], got 'v1'"),
        ("set reviews -n shop --subset v1", "--subset v1: expected NAME=LABEL:VALUE[,LABEL:VALUE]"),
        ("set reviews -n shop --fault-delay 5", "--fault-delay 5: expected PERCENT:TIME such as 5:2s"),
        ("set reviews -n shop --fault-abort x:503", "expected PERCENT:STATUS such as 5:503"),
        ("set reviews -n shop --retry-on 5x", "spec.retries.retryOn[0]: expected connect-failure,"),
        (
            "set reviews -n shop --unset timeouts.request",
            "--unset timeouts.request: the policy says nothing there",
        ),
        (
            "set reviews -n shop --fault-abort 5:503 --route b",
            "--route b: there is no such route; no route has a name",
        ),
        ("get revews -n shop", "there is no policy 'revews' in namespace shop, nor one for it"),
        ("delete revews -n shop", "there is no TrafficPolicy 'revews' in namespace shop"),
        ("explain revews -n shop", "there is no Service 'revews' in namespace shop; did you mean 'reviews'?"),
        ("test revews -n shop", "there is no Service 'revews' in namespace shop; did you mean 'reviews'?"),
        ("test reviews -n shop --path x", "--path x: expected a path that begins with '/'"),
        ("test reviews -n shop --from web", "--from web: expected NAMESPACE/ACCOUNT"),
        ("test reviews -n shop --header web", "--header web: expected NAME:VALUE"),
        ("test", "name a Service, or a file with -f"),
        ("apply -f /nowhere.yaml", "/nowhere.yaml: "),
    ],
)
def test_errors_say_what_and_where(shop: Cluster, arguments: str, message: str) -> None:
    done = meshctl(*arguments.split())
    assert done.exit_code == 2
    assert message in done.stderr
    assert not shop.items("triomesh.dev/v1alpha1", "TrafficPolicy")


def test_get_shows_state_and_delete_removes(shop: Cluster) -> None:
    assert "no policies in namespace shop" in meshctl("get", "-n", "shop").stderr
    accepted = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}
    conflicted = {
        "type": "Conflicted",
        "status": "True",
        "reason": "Older",
        "message": "shop/reviews is older",
    }
    refused = {"type": "Accepted", "status": "False", "reason": "Conflicted", "message": "no"}
    shop.objects += [
        {**policy({"subsets": {"v1": {"labels": {"a": "b"}}}}), "status": {"conditions": [accepted]}},
        {**policy({}, "twin"), "status": {"conditions": [refused, conflicted]}},
        policy({"defaults": {}}, "mine", "MeshPolicy"),
        {
            **policy({}, "stale", generation=2),
            "status": {"conditions": [{**accepted, "observedGeneration": 1}]},
        },
    ]
    lines = meshctl("get", "-n", "shop", "-o", "wide").stdout.splitlines()
    assert lines[0].split() == [
        *("NAMESPACE", "KIND", "NAME", "FOR", "ACCEPTED", "PROGRAMMED", "AGE"),
        *("SUBSETS", "ROUTES", "MESSAGE"),
    ]
    rows = {line.split()[2]: line for line in lines[1:]}
    assert "service/reviews   True" in rows["reviews"]
    assert "False (Conflicted)" in rows["twin"]
    assert "shop/reviews is older" in rows["twin"]
    assert "namespace/shop" in rows["mine"]
    assert "service/reviews   not yet" in rows["stale"]
    found = yaml.safe_load(meshctl("get", "twin", "-n", "shop", "-o", "yaml").stdout)
    assert [each["metadata"]["name"] for each in found] == ["twin"]
    assert meshctl("delete", "reviews", "-n", "shop").stdout == "trafficpolicy.triomesh.dev/reviews deleted\n"
    assert "stale and twin are for the Service" in meshctl("delete", "reviews", "-n", "shop").stderr


def test_apply_checks_all_before_anything_is_written(
    shop: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []

    def note(kube: Any, obj: Object) -> str:
        applied.append(obj["metadata"]["name"])
        if obj["metadata"]["name"] == "refused":
            raise MeshctlError("trafficpolicy.triomesh.dev/refused: no")
        return "created"

    monkeypatch.setattr(cluster, "apply", note)
    good = policy({}, "good")
    bad = policy({"routes": [{"to": [{"weight": 0}]}]}, "bad")
    unknown = policy({"timeuts": {}, "subsets": {"v1": {}}}, "unknown")
    file = tmp_path / "all.yaml"
    file.write_text(
        yaml.safe_dump_all([good, bad, unknown, {"kind": "Pod", "metadata": {}}], sort_keys=False)
    )
    done = meshctl("apply", "-f", str(file))
    assert done.exit_code == 2
    assert done.stderr == (
        f"error: {file}: document 2: TrafficPolicy shop/bad: "
        "spec.routes[0].to: expected weights with a sum above 0, got 0\n"
        f"error: {file}: document 3: TrafficPolicy shop/unknown:\n"
        "  spec.timeuts: unknown field; did you mean 'timeouts'?\n"
        "  spec.subsets.v1.labels: expected a value, got none\n"
        f"error: {file}: document 4: expected TrafficPolicy, MeshPolicy or AccessPolicy of "
        "triomesh.dev/v1alpha1, got 'Pod' of null\n"
        "error: nothing was changed: 3 of 4 policies are not legal\n"
    )
    assert applied == []
    stream = yaml.safe_dump_all([policy({}, "refused"), good])
    done = meshctl("apply", "-f", "-", stdin=stream)
    assert done.exit_code == 2
    assert applied == ["refused", "good"]
    assert done.stdout == "trafficpolicy.triomesh.dev/good created\n"
    assert "1 of 2 policies were not applied" in done.stderr
    assert meshctl("apply", "-f", "-", "--dry-run", stdin=yaml.safe_dump(good)).stdout.endswith("is legal\n")


def test_explain_names_value_source_and_side(shop: Cluster) -> None:
    shop.objects += [
        policy(
            {"defaults": {"timeouts": {"connect": "3s"}, "mtls": {"mode": "STRICT"}}}, "own", "MeshPolicy"
        ),
        policy(
            {"overrides": {"retries": {"attempts": 0}, "pathNormalization": "none"}},
            "mesh",
            "MeshPolicy",
            namespace="triomesh-system",
        ),
        policy(
            {
                "timeouts": {"request": "30s"},
                "subsets": {"v2": {"labels": {"version": "v2"}, "outliers": {"consecutive5xx": 3}}},
                "routes": [
                    {
                        "match": [{"path": {"prefix": "/a"}}],
                        "to": [{"subset": "v2"}],
                        "retries": {"attempts": 5},
                    }
                ],
            }
        ),
        policy({}, "younger", creationTimestamp="2026-02-01T00:00:00Z"),
        policy({"routes": [{}]}, "broken"),
    ]
    shown = json.loads(meshctl("explain", "reviews", "-n", "shop", "-o", "json").stdout)
    rows = {(row["scope"], row["field"]): row for row in shown["fields"]}

    def row(scope: str, field: str) -> tuple[str, str, str]:
        found = rows[scope, field]
        return found["value"], found["source"], found["side"]

    own = "TrafficPolicy shop/reviews"
    mesh = "MeshPolicy triomesh-system/mesh (overrides)"
    assert row("destination", "timeouts.request") == ("30s", own, "caller")
    assert row("destination", "timeouts.connect") == ("3s", "MeshPolicy shop/own (defaults)", "caller")
    assert row("destination", "timeouts.tcpIdle") == ("1h", "default", "caller")
    assert row("destination", "retries.attempts") == ("0", mesh, "caller")
    assert row("subset v2", "outliers.consecutive5xx") == ("3", own, "caller")
    assert row("route #0", "to") == ("100 % subset v2", own, "caller")
    assert row("route #0", "retries.attempts") == ("0", mesh, "caller")
    strict = ("STRICT", "MeshPolicy shop/own (defaults)", "receiver")
    assert row("deployment reviews-v1", "mtls.mode") == strict
    assert row("deployment reviews-v1", "pathNormalization") == ("none", mesh, "receiver")
    assert "mtls STRICT: callers outside the mesh are refused" in shown["notes"]
    assert "TrafficPolicy shop/younger: not in force, shop/reviews is older" in shown["notes"]
    assert any("shop/broken: spec.routes[0]: expected exactly one" in note for note in shown["notes"])
    table = meshctl("explain", "reviews", "-n", "shop").stdout
    assert table.splitlines()[0].split() == ["SCOPE", "FIELD", "VALUE", "SOURCE", "SIDE"]


def test_explain_without_a_policy_shows_all_defaults(shop: Cluster) -> None:
    shown = json.loads(meshctl("explain", "ratings", "-n", "shop", "-o", "json").stdout)
    found = {row["field"]: row["value"] for row in shown["fields"] if row["scope"] == "destination"}
    assert found == DEFAULTS
    assert {row["source"] for row in shown["fields"]} == {"default"}


ROUTES = [
    {
        "name": "beta",
        "match": [
            {
                "path": {"prefix": "/a"},
                "method": "GET",
                "headers": {"x": {"exact": "1"}},
                "source": {"namespace": "shop", "serviceAccount": "web", "labels": {"app": "web"}},
            },
            {"path": {"exact": "/x"}},
        ],
        "to": [{"subset": "v1", "weight": 3}, {"service": "ratings", "weight": 1}],
        "timeout": "2s",
    },
    {"match": [{"query": {"debug": {"present": True}}}], "respond": {"status": 200, "body": "ok"}},
    {
        "match": [{"path": {"regex": "/[0-9]+"}, "headers": {"y": {"prefix": "b"}}}],
        "redirect": {"host": "new"},
    },
]


def trial_file(directory: Path) -> str:
    file = directory / "policy.yaml"
    spec = {"subsets": {"v1": {"labels": {"version": "v1"}}}, "routes": ROUTES, "timeouts": {"request": "9s"}}
    file.write_text(yaml.safe_dump(policy(spec)))
    return str(file)


def test_test_says_what_happens_and_why(tmp_path: Path) -> None:
    file = trial_file(tmp_path)
    calls = ["--path", "/a/b", "--header", "X: 1", "--from", "shop/web", "--from-label", "app=web"]
    done = meshctl("test", "-f", file, *calls)
    assert done.stdout.splitlines()[:5] == [
        "shop/reviews (TrafficPolicy shop/reviews): route beta",
        "  to subset v1: 75 %",
        "  to shop/ratings:80: 25 %",
        "  timeout: 2s",
        "  retries: at most 1, on the safe set",
    ]
    shown = json.loads(meshctl("test", "-f", file, "--query", "debug=", "-o", "json").stdout)
    assert (shown["route"], shown["outcome"]) == ("#1", ["answer 200, 2 bytes"])
    assert shown["routes"][0]["why"] == (
        "path / is not below /a; header x is missing, expected '1'; "
        "caller is in namespace default, not shop; caller's account is default, not web; "
        "caller has app=(nothing), not app=web | path / is not /x"
    )
    done = meshctl("test", "-f", file, "--path", "/42", "--header", "y:bc", "--header", "host:old")
    assert "  answer 301, Location: http://new/42" in done.stdout
    done = meshctl("test", "-f", file, "--path", "/nothing")
    assert done.exit_code == 1
    assert "no route matches: 404, flag NR" in done.stdout
    done = meshctl("test", "-f", file, "--path", "/x/../nothing/../%61/b", *calls[2:])
    assert done.stdout.startswith("shop/reviews (TrafficPolicy shop/reviews): route beta\n")
    done = meshctl("test", "-f", file, "--path", "/a%00")
    assert done.exit_code == 1
    assert "  refused: 400, flag DPE: the path has %00, which" in done.stdout
    assert "expected one TrafficPolicy" not in done.output
    assert "the file has no policy for default/other" in meshctl("test", "other", "-f", file).stderr


def test_test_without_a_policy(shop: Cluster) -> None:
    done = meshctl("test", "reviews", "-n", "shop")
    assert done.stdout.splitlines()[:2] == ["shop/reviews (no policy): route (no routes)", "  every endpoint"]


@pytest.mark.parametrize("target", ["/a", "/ab", "/a/", "/x", "/?debug", "/12", "/12?debug=1"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("headers", [{}, {"x": "1"}, {"y": "b"}])
def test_reasons_agree_with_the_router(target: str, method: str, headers: dict[str, str]) -> None:
    found = read_policy(
        "TrafficPolicy", policy({"subsets": {"v1": {"labels": {"a": "b"}}}, "routes": ROUTES})
    )
    assert isinstance(found, TrafficPolicy)
    made = parts(found, Levels("s", {}), "shop", lambda name, port: f"shop/{name}:80")
    request = Request(method, target, headers, Caller("shop", "web", {"app": "web"}))
    trial = tried(made, request)
    for route, verdict in zip(made.routes, trial.verdicts, strict=True):
        alone = Router((route,), request.caller).match(method.encode(), target.encode(), request.header)
        if not verdict.taken and not verdict.why.startswith("not looked at"):
            assert alone is None
            assert all(verdict.why.split(" | "))  # each match has a reason
        elif verdict.taken:
            assert alone is not None


def test_unset_leaves_no_empty_parts() -> None:
    spec = {"target": {"service": "a"}, "retries": {"backoff": {"base": "1ms"}, "attempts": 1}}
    assert edited(spec, fields={}, unset=["retries.backoff.base"])["retries"] == {"attempts": 1}
    assert edited(spec, fields={}, unset=["retries"]) == {"target": {"service": "a"}}
    with pytest.raises(MeshctlError, match="did you mean 'attempts'"):
        edited(spec, fields={}, unset=["retries.attempt"])


def test_workloads_of_pods() -> None:
    assert policy_find.workloads([pod("v1"), pod("v1"), pod("v2")]) == [
        ("Deployment", "reviews-v1"),
        ("Deployment", "reviews-v2"),
    ]
