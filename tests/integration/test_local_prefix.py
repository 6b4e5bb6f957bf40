"""What pods of the local cluster see at /opt/triomesh: enough for every program, with nothing else there."""

import subprocess
from pathlib import Path

import pytest

from mesh_local.lifecycle import prefix


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("prefix") / "code"
    prefix.install(target)
    return target


@pytest.mark.parametrize(
    "modules",
    [
        ("mesh_control.app", "kubernetes.config", "kubernetes.client.api_client", "injector.webhook"),
        ("mesh_proxy.app",),
        ("mesh_proxy.wire.http2.nghttp2", "mesh_proxy.wire.http2.hyper"),
        ("injector.netinit.apply", "pyroute2"),
        ("certs.service", "certs.authority"),
    ],
    ids=lambda modules: modules[0],
)
def test_a_program_finds_all_that_it_imports(installed: Path, modules: tuple[str, ...]) -> None:
    # Isolated and without site-packages: only the copy is there.
    script = f"import sys; sys.path.insert(0, {str(installed / 'lib')!r}); import {', '.join(modules)}"
    python = str(installed / "bin" / "python3")
    done = subprocess.run(
        [python, "-I", "-S", "-B", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_user_can_read_it_and_byte_code_is_there(installed: Path) -> None:
    assert {path.stat().st_mode & 0o005 for path in installed.rglob("*") if path.is_dir()} == {0o005}
    assert {path.stat().st_mode & 0o777 for path in (installed / "lib").rglob("*.py")} == {0o644}
    assert list((installed / "lib" / "mesh_proxy" / "__pycache__").glob("app.*.pyc"))
    assert {path.name for path in (installed / "bin").iterdir()} == {*prefix.PROGRAMS, "python3"}


def test_a_new_copy_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "code"
    target.mkdir()
    (target / "old").write_text("")
    prefix.install(target, in_use=True)
    assert not (target / "old").exists()
    assert [path for path in tmp_path.iterdir() if (path / "old").exists()]
