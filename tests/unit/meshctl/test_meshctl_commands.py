"""The command line without a cluster: help, errors in one line, dry runs, what is taken out of a report."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from manifests.render import render
from manifests.values import Values
from mesh_api.version import VERSION
from meshctl.main import LOADED, cli
from meshctl.merge import LAST_APPLIED
from meshctl.redact import redact, redact_text
from meshctl.render import table


def meshctl(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="meshctl")


def test_help_names_every_command_without_loading_it() -> None:
    text = meshctl("--help").output
    for name in (*LOADED, "local"):
        assert f"  {name} " in text


@pytest.mark.parametrize("command", sorted(LOADED))
def test_every_command_has_help(command: str) -> None:
    done = meshctl(command, "--help")
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: meshctl {command}")


def test_dry_run_prints_the_objects() -> None:
    done = meshctl("install", "--dry-run")
    assert list(yaml.safe_load_all(done.output)) == render(Values())
    done = meshctl("install", "--dry-run", "-o", "json")
    assert json.loads(done.output)["items"] == render(Values())


def test_values_from_files_and_assignments(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("replicas: 5\nimage: {tag: abc, repository: registry.example/m}\n")
    done = meshctl("install", "--dry-run", "-f", str(file), "--set", "image.tag=def")
    objects = list(yaml.safe_load_all(done.output))
    deployment = next(o for o in objects if o["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == 5
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/m:def"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--set", "replicas"], "error: --set replicas: expected path.to.field=value\n"),
        (["--set", "x=1"], "error: values: object contains unknown field `x`\n"),
        (["--kubeconfig", "/nowhere"], "error: kubeconfig /nowhere: "),
        (["-o", "yaml"], "-o goes with --dry-run"),
        (["--timeout", "soon"], "expected a time such as 90s or 2m, got 'soon'"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(arguments: list[str], error: str) -> None:
    done = meshctl("install", *arguments)
    assert done.exit_code == 2
    assert error in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("text", ["- a\n", "a: [", "a: b: c"])
def test_a_values_file_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(text)
    done = meshctl("install", "--dry-run", "-f", str(file))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {file}: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_api_server_that_does_not_answer(tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    done = meshctl("install", "--kubeconfig", str(file))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: no answer from the API server at https://127.0.0.1:1: ")
    assert "Connection refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_version_of_the_client() -> None:
    assert meshctl("version", "--client").output == f"client: {VERSION}\n"
    assert json.loads(meshctl("version", "--client", "-o", "json").output) == {"client": VERSION}
    assert VERSION in meshctl("--version").output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = meshctl("completion", shell)
    assert done.exit_code == 0
    assert "_MESHCTL_COMPLETE" in done.output


def test_tables() -> None:
    assert table(("A", "LONG"), [("aaa", 1), ("b", "x")]) == "A     LONG\naaa   1\nb     x"
    assert table(("A", "B"), []) == "A   B"


def test_secrets_keep_only_the_names_of_their_keys() -> None:
    secret = {
        "kind": "Secret",
        "metadata": {"name": "s", "annotations": {LAST_APPLIED: "c2VjcmV0", "kept": "yes"}},
        "data": {"key": "c2VjcmV0"},
        "stringData": {"more": "secret"},
    }
    text = json.dumps(redact(secret))
    assert "c2VjcmV0" not in text
    assert '"more"' not in text
    assert '"kept": "yes"' in text
    assert '"key": "(removed, 8 characters)"' in text


def test_foreign_containers_tell_nothing_of_what_they_are_told() -> None:
    app = {
        "name": "app",
        "image": "i",
        "env": [{"name": "P", "value": "hunter2"}],
        "command": ["x", "hunter2"],
    }
    ours = {"name": "triomesh-proxy", "image": "m", "env": [{"name": "TRIOMESH_LOG_LEVEL", "value": "info"}]}
    pod = {
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [app], "initContainers": [ours, app]},
    }
    result = redact(pod)
    assert result["spec"]["containers"] == [{"name": "app", "image": "i"}]
    assert result["spec"]["initContainers"] == [ours, {"name": "app", "image": "i"}]
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {"template": {"spec": pod["spec"]}},
    }
    assert "hunter2" not in json.dumps(redact(deployment))


def test_keys_and_tokens_in_logs() -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4eHh4In0.c2lnbmF0dXJlc2lnbmF0dXJl"
    key = "-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----"
    cut = "-----BEGIN PRIVATE KEY-----\nabc"
    assert redact_text(f"a {token} b {key} c {cut}") == (
        "a (token removed) b (private key removed) c (private key removed)"
    )
