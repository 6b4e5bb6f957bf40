"""`meshctl` in process against a local cluster, with a control plane that is installed and never starts."""

from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from meshctl.main import cli
from tests.support.local_cluster import Cluster

# It asks for more memory than there is, and so is never started.
IDLE = ("--set", "resources.requests.memory=9000Gi", "--set", "resources.limits.memory=")


def meshctl(cluster: Cluster, *arguments: str, kubeconfig: Path | None = None) -> Result:
    environment = {"KUBECONFIG": str(kubeconfig or cluster.kubeconfig)}
    done = CliRunner().invoke(cli, list(arguments), prog_name="meshctl", env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    return done


def install(cluster: Cluster, *arguments: str) -> dict[str, str]:
    """What `install` says about each object."""
    return said(meshctl(cluster, "install", *IDLE, *arguments))


def said(done: Result) -> dict[str, str]:
    assert done.exit_code == 0, done.output
    lines = (line.partition(" ") for line in done.output.splitlines() if "/" in line.partition(" ")[0])
    return {name: what for name, _, what in lines}


def kubeconfig_of(cluster: Cluster, account: str, path: Path, namespace: str = "") -> Path:
    """A kubeconfig of a ServiceAccount: of a new one in `default`, or of one that is in `namespace`."""
    if not namespace:
        cluster.kubectl("create", "serviceaccount", account)
    token = cluster.kubectl("create", "token", account, "-n", namespace or "default").stdout.strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(config))
    return path
