"""The API server: reachable, of a version that is known, and of our time."""

from datetime import UTC
from email.utils import parsedate_to_datetime

from meshctl.checks.model import Check, Result, Target, failed, passed, skipped, warning

OLDEST, NEWEST = (1, 29), (1, 36)
MAX_SKEW_S = 60
"""Certificates begin two minutes in the past; tokens and Leases are less patient."""


def _reachable(target: Target) -> Result:
    found = target.kube.request("GET", "/version")
    return passed(f"{target.kube.host}, {found['gitVersion']}")


def _version(target: Target) -> Result:
    found = target.kube.request("GET", "/version")
    try:
        version = int(found["major"]), int(found["minor"].rstrip("+"))
    except ValueError:
        return warning(f"expected a version such as 1.36, got {found['gitVersion']}")
    text = f"{version[0]}.{version[1]}"
    if version < OLDEST:
        return failed(f"{text}; expected at least {OLDEST[0]}.{OLDEST[1]}, which starts native sidecars")
    if version > NEWEST:
        return warning(f"{text} is newer than what this meshctl was tested with ({NEWEST[0]}.{NEWEST[1]})")
    return passed(text)


def _nodes(target: Target) -> Result:
    nodes = target.kube.items("v1", "Node")
    old = []
    for node in nodes:
        text = ((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion", "")
        parts = text.removeprefix("v").split(".")
        if len(parts) < 2 or not (parts[0] + parts[1]).isdigit():
            old.append(f"{node['metadata']['name']}: version {text or 'unknown'}")
        elif (int(parts[0]), int(parts[1])) < OLDEST:
            old.append(f"{node['metadata']['name']}: {text}")
    if old:
        return failed(f"{len(old)} of {len(nodes)} nodes are too old for native sidecars", old)
    return passed(f"{len(nodes)} nodes")


def _clock(target: Target) -> Result:
    before = target.now()
    answer = target.kube.send("GET", "/version")
    after = target.now()
    header = {name.lower(): value for name, value in answer.headers.items()}.get("date", "")
    try:
        there = parsedate_to_datetime(header)
    except ValueError:
        return skipped("the API server says no date")
    if there.tzinfo is None:
        there = there.replace(tzinfo=UTC)
    skew = abs((there - (before + (after - before) / 2)).total_seconds())
    text = f"{skew:.0f} s between this machine and the API server"
    return passed(text) if skew <= MAX_SKEW_S else failed(f"{text}, expected at most {MAX_SKEW_S} s")


REACHABLE = Check(
    "api-reachable",
    "the API server answers",
    "see that `kubectl version` works with the same --kubeconfig and --context",
    _reachable,
    fatal=True,
)
VERSION = Check("api-version", "the API server has a known version", "use Kubernetes 1.29 to 1.36", _version)
NODES = Check(
    "node-versions",
    "every node starts native sidecars",
    "upgrade the kubelets, or keep meshed pods away from these nodes",
    _nodes,
)
CLOCK = Check(
    "clock-skew",
    "the clocks agree",
    "synchronise this machine and the cluster's nodes (NTP)",
    _clock,
)
