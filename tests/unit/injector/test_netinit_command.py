"""The command line of netinit, as far as it needs no root."""

import pytest
from click.testing import CliRunner

from injector.netinit import host
from injector.netinit.__main__ import main
from injector.netinit.plan import Options, plan, render_restore


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_dry_run_prints_both_families(runner: CliRunner) -> None:
    done = runner.invoke(main, ["apply", "--dry-run", "--ipv6", "on"])
    assert done.exit_code == 0
    texts = [f"# IPv{family}\n{render_restore(plan(Options(), family))}" for family in (4, 6)]
    assert done.stdout == "".join(texts)


def test_dry_run_without_ipv6(runner: CliRunner) -> None:
    done = runner.invoke(main, ["--dry-run", "--no-ipv6"])
    assert done.exit_code == 0
    assert done.stdout == f"# IPv4\n{render_restore(plan(Options(), 4))}"


def test_settings_come_from_flags_or_environment(runner: CliRunner) -> None:
    flags = runner.invoke(
        main,
        [
            "--dry-run",
            "--no-ipv6",
            "--exclude-outbound-ports",
            "25",
            "--include-inbound-ports",
            "none",
            "--keep-invalid",
        ],
    )
    environment = runner.invoke(
        main,
        ["--dry-run", "--no-ipv6"],
        env={
            "TRIOMESH_EXCLUDE_OUTBOUND_PORTS": "25",
            "TRIOMESH_INCLUDE_INBOUND_PORTS": "none",
            "TRIOMESH_DROP_INVALID": "false",
        },
    )
    assert flags.exit_code == 0
    assert flags.stdout == environment.stdout
    assert "--dport 25 " in flags.stdout
    assert "TRIOMESH_INBOUND" not in flags.stdout
    assert "mangle" not in flags.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exclude-outbound-ports", "70000"], "--exclude-outbound-ports: 70000 is not a port (1 to 65535)"),
        (["--include-cidrs", "10.0.0.1/8"], "--include-cidrs: 10.0.0.1/8 has host bits set"),
        (
            ["--netns", "/nowhere/at/all", "--dry-run"],
            "cannot open network namespace /nowhere/at/all: No such file",
        ),
    ],
)
def test_what_cannot_work_is_one_line_and_status_2(
    runner: CliRunner, arguments: list[str], message: str
) -> None:
    done = runner.invoke(main, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"triomesh-netinit: error: {message}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_without_capabilities(monkeypatch: pytest.MonkeyPatch, runner: CliRunner) -> None:
    monkeypatch.setattr(host, "has_capability", lambda _name: False)
    for arguments in ([], ["--cleanup"], ["--cleanup", "--dry-run"]):
        done = runner.invoke(main, arguments)
        assert done.exit_code == 2
        assert "CAP_NET_ADMIN and CAP_NET_RAW missing" in done.stderr
        assert done.stderr.count("\n") == 1
