"""Volumes' files: their content, the atomic layout, ownership, host paths, sub-paths."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mesh_local.kubelet.atomic import File, check_path, write
from mesh_local.kubelet.fields import Node
from mesh_local.kubelet.payload import Context, common_user, files_of
from mesh_local.kubelet.types import VolumeError
from mesh_local.kubelet.volumes import _make_below, check_host_path, sub_path
from mesh_local.machinery.objects import Object
from tests.support.local_kubelet import MOMENT

OBJECTS: dict[tuple[str, str], Object] = {
    ("ConfigMap", "cm"): {"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "AAE="}},
    ("Secret", "s"): {"data": {"k": "djE="}},
}


def made(volume: Object, **pod: Any) -> dict[str, File]:
    obj = {"metadata": {"name": "p", "namespace": "t", "labels": {"a": "b"}}, "spec": pod}
    node = Node("n", ("10.0.0.1",), {})
    return files_of(volume, Context(obj, node, (), lambda k, n: OBJECTS.get((k, n)), lambda _source: "jwt"))


def test_config_maps_and_secrets() -> None:
    assert made({"configMap": {"name": "cm"}}) == {
        "a": File(b"1", 0o644),
        "b": File(b"2", 0o644),
        "bin": File(b"\0\1", 0o644),
    }
    items = [{"key": "k", "path": "x/y", "mode": 0o400}]
    assert made({"secret": {"secretName": "s", "items": items}}) == {"x/y": File(b"v1", 0o400)}
    assert made({"secret": {"secretName": "no", "optional": True}}) == {}
    with pytest.raises(VolumeError, match='secret "no" not found'):
        made({"secret": {"secretName": "no"}})
    with pytest.raises(VolumeError, match="references non-existent config key: z"):
        made({"configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}})


def test_projections_come_together() -> None:
    volume = {
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"serviceAccountToken": {"path": "token"}},
                {"configMap": {"name": "cm", "items": [{"key": "a", "path": "a"}]}},
                {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ],
        }
    }
    assert made(volume) == {"token": File(b"jwt", 0o440), "a": File(b"1", 0o440), "ns": File(b"t", 0o440)}
    # KEP-2451: only the one user of all containers, or the pod's group, may read the token.
    context = {"securityContext": {"runAsUser": 1337}}
    assert made(volume, containers=[{}], **context)["token"] == File(b"jwt", 0o600, 1337)
    with pytest.raises(VolumeError, match="does not support the volume source podCertificate"):
        made({"projected": {"sources": [{"podCertificate": {}}]}})


def test_the_one_user_of_all_containers() -> None:
    def of(*users: int | None) -> int | None:
        return common_user({"spec": {"containers": [{"securityContext": {"runAsUser": u}} for u in users]}})

    assert [of(5, 5), of(5, 6), of(None)] == [5, None, None]


def test_updates_are_atomic_and_remove_what_is_gone(tmp_path: Path) -> None:
    first = {"a": File(b"1", 0o644), "d/x": File(b"2", 0o600)}
    assert write(tmp_path, first, MOMENT)
    assert not write(tmp_path, first, MOMENT)
    data = os.readlink(tmp_path / "..data")
    assert data.startswith("..2026_01_02_03_04_05.")
    assert os.readlink(tmp_path / "a") == "..data/a"
    assert (tmp_path / "d/x").read_bytes() == b"2"
    assert (tmp_path / "d/x").stat().st_mode & 0o777 == 0o600
    assert write(tmp_path, {"a": File(b"3", 0o644), "b": File(b"", 0o644)}, MOMENT + timedelta(seconds=1))
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("..2026")) == [
        "..data",
        "a",
        "b",
    ]
    assert (tmp_path / "a").read_bytes() == b"3"
    assert not (tmp_path / data).exists()


def test_the_group_of_a_pod_may_read(tmp_path: Path) -> None:
    group = os.getgid()
    write(tmp_path, {"d/token": File(b"t", 0o600)}, MOMENT, group)
    found = (tmp_path / "d/token").stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o640, group)
    assert tmp_path.stat().st_mode & 0o2050 == 0o2050


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "..data"])
def test_paths_stay_inside(path: str) -> None:
    with pytest.raises(VolumeError, match="invalid path"):
        check_path(path)


def test_sub_paths_do_not_follow_links_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to("/etc")
    root.chmod(0o777)
    made = sub_path(root, "new/dir")
    assert (made.stat().st_mode & 0o777, made.parent.stat().st_mode & 0o777) == (0o777, 0o777)
    assert sub_path(root, ".") == root
    with pytest.raises(VolumeError, match="leads out of the volume"):
        sub_path(root, "out/passwd")


def test_a_symlink_that_appears_meanwhile_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        _make_below(root, ["a", "b"])
    assert not (tmp_path / "b").exists()


def test_host_paths_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    check_host_path({"path": str(tmp_path / "d"), "type": "DirectoryOrCreate"})
    check_host_path({"path": str(tmp_path / "f"), "type": "FileOrCreate"})
    assert (tmp_path / "d").is_dir()
    assert (tmp_path / "f").is_file()
    with pytest.raises(VolumeError, match="f is not a directory"):
        check_host_path({"path": str(tmp_path / "f"), "type": "Directory"})
    with pytest.raises(VolumeError, match="is not a socket file"):
        check_host_path({"path": str(tmp_path / "no"), "type": "Socket"})
