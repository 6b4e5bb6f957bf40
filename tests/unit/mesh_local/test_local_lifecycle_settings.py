"""What is checked before a cluster is started, and what is kept of its settings."""

import os
import socket
from pathlib import Path

import pytest

from mesh_local import settings
from mesh_local.lifecycle import prefix, preflight
from mesh_local.settings import Choices, Places, SettingsError, read_choices, write_choices


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a" * 21, "a/b", "a b", "a\n"])
def test_names_that_cannot_be_a_cluster(name: str) -> None:
    with pytest.raises(SettingsError, match=r"expected 1 to 20 lower-case letters"):
        Places(name)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(settings, "STATE_ROOT", tmp_path / "state")
    monkeypatch.setattr(settings, "RUN_ROOT", tmp_path / "run")
    return Places("a")


def test_choices_are_kept(places: Places) -> None:
    assert read_choices(places) is None
    write_choices(places, Choices(6443, "dual"))
    assert read_choices(places) == Choices(6443, "dual")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not what this version writes"),
        (b'{"api_port": "x", "ip_family": "dual"}', "is not what this version writes"),
        (b'{"api_port": 1, "ip_family": "dual", "version": 99}', "is of version 99"),
    ],
)
def test_choices_that_cannot_be_read_say_what_to_do(places: Places, content: bytes, expected: str) -> None:
    places.state.mkdir(parents=True)
    places.choices.write_bytes(content)
    with pytest.raises(SettingsError, match=expected) as caught:
        read_choices(places)
    assert "meshctl local down --purge --name a" in str(caught.value)


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = preflight.shutil.which
    monkeypatch.setattr(
        preflight.shutil, "which", lambda tool, path: None if "6tables" in tool else found(tool, path=path)
    )
    with pytest.raises(
        SettingsError, match=r"missing ip6tables, ip6tables-restore .*apt-get install iptables"
    ):
        preflight.require_machine()


def test_a_user_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 1000)
    with pytest.raises(SettingsError, match="needs root"):
        preflight.require_root()


def test_the_port_is_the_one_asked_for_or_kept_or_the_first_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} on 127.0.0.1 is taken"):
            preflight.choose_port(port, None)
        with pytest.raises(SettingsError, match="choose another with --api-port"):
            preflight.choose_port(None, Choices(port, "dual"))
    assert preflight.choose_port(port, None) == port
    assert preflight.choose_port(None, None) >= settings.FIRST_PORT


def test_the_prefix_is_readable_by_everybody_and_starts_its_programs(tmp_path: Path) -> None:
    target = tmp_path / "prefix"
    prefix.install(target)
    prefix.install(target)  # replaces what is there
    assert {p.name for p in (target / "bin").iterdir()} == {*prefix.PROGRAMS, "python3"}
    assert (target / "lib" / "mesh_proxy" / "app.py").is_file()
    assert (target / "lib" / "trio" / "__init__.py").is_file()
    assert not (target / "lib" / "mesh_local").exists()
    for path in (target, *target.rglob("*")):
        assert path.is_symlink() or path.stat().st_mode & 0o004


def test_containers_that_run_keep_the_code_they_see(tmp_path: Path) -> None:
    target = tmp_path / "prefix"
    prefix.install(target)
    seen = os.open(target, os.O_RDONLY | os.O_DIRECTORY)  # as a mount, it stays with the directory
    try:
        prefix.install(target, in_use=True)
        os.stat("lib/mesh_proxy/app.py", dir_fd=seen)
        prefix.install(target)
        with pytest.raises(FileNotFoundError):
            os.stat("lib/mesh_proxy/app.py", dir_fd=seen)
    finally:
        os.close(seen)
    assert os.listdir(tmp_path) == ["prefix"]


def test_the_state_is_for_root_only(places: Places) -> None:
    write_choices(places, Choices(6443, "dual"))
    assert places.state.stat().st_mode & 0o777 == 0o700


def test_no_two_clusters_are_promised_one_port(places: Places) -> None:
    with settings.choosing():
        first = preflight.choose_port(None, None, settings.promised_ports(places))
        write_choices(places, Choices(first, "dual"))
        (settings.STATE_ROOT / "Not a cluster").mkdir()
        other = settings.promised_ports(Places("b"))
        assert other == {first}
        assert preflight.choose_port(None, None, other) > first
