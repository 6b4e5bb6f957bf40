"""Names, addresses, records on disk and packet loss."""

from __future__ import annotations

import uuid

import pytest

from mesh_local.network import addressing, faults
from mesh_local.network.records import PodRecord, Records
from mesh_local.network.types import NetworkError, PacketFaults

UID = "0a1b2c3d-0000-4000-8000-000000000000"


def uids(count):
    return [str(uuid.UUID(int=(i + 1) << 96, version=4)) for i in range(count)]


def test_names_are_short_and_tell_the_cluster():
    assert addressing.pod_name("dev", UID) == "tm-dev-0a1b2c3d"
    assert addressing.node_name("dev") == "tm-dev-node"
    assert len(addressing.link_name(UID)) <= 15


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("tm-a-node", True),
        ("tm-a-0a1b2c3d", True),
        ("tm-a-b-node", False),
        ("tm-a-b-0a1b2c3d", False),
        ("tm-a-0a1b2c3", False),
        ("tm-ab-node", False),
        ("xtm-a-node", False),
    ],
)
def test_a_cluster_owns_its_names_only(name, own):
    assert addressing.belongs("a", name) is own


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a/b", "a" * 33])
def test_bad_cluster_names_are_refused(name):
    with pytest.raises(NetworkError, match="cluster name"):
        addressing.check_cluster(name)


def test_bad_uids_and_families_are_refused():
    with pytest.raises(NetworkError, match="pod uid"):
        addressing.short("../../etc")
    with pytest.raises(NetworkError, match="expected ipv4, ipv6 or dual"):
        addressing.families("both")  # type: ignore[arg-type]


def test_addresses():
    assert (addressing.IPV4.node, addressing.IPV6.node) == ("10.244.0.1", "fd10:244::1")
    assert (addressing.IPV4.dns, addressing.IPV6.dns) == ("10.96.0.10", "fd10:96::a")
    assert (addressing.IPV4.pod(2), addressing.IPV6.pod(258)) == ("10.244.0.2", "fd10:244::102")
    assert [f.version for f in addressing.families("dual")] == [4, 6]


def test_an_address_is_not_used_again_soon(tmp_path):
    records = Records(tmp_path, "ipv4")
    first, second, third = uids(3)
    assert records.allocate(first).index == 2
    records.release(first)
    assert records.allocate(second).index == 3
    assert records.allocate(second).index == 3
    # not even after a restart
    assert Records(tmp_path, "ipv4").allocate(third).index == 4


def test_addresses_wrap_around_and_run_out(tmp_path, monkeypatch):
    monkeypatch.setattr("mesh_local.network.records.LAST_POD", 4)
    records = Records(tmp_path, "ipv4")
    a, b, c, d = uids(4)
    assert [records.allocate(uid).index for uid in (a, b, c)] == [2, 3, 4]
    with pytest.raises(NetworkError, match="all 3 pod addresses are in use"):
        records.allocate(d)
    records.release(b)
    assert records.allocate(d).index == 3


def test_records_survive_and_go(tmp_path):
    records = Records(tmp_path, "dual")
    record = records.allocate(UID)
    record.faults = PacketFaults(loss_percent=5)
    records.save()
    assert Records(tmp_path, "dual").pods == {UID: PodRecord(2, PacketFaults(loss_percent=5))}
    (tmp_path / ".network.json.killed").touch()
    Records.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_families_and_damage_are_told(tmp_path):
    Records(tmp_path, "ipv4").allocate(UID)
    with pytest.raises(NetworkError, match="started with families ipv4, not dual"):
        Records(tmp_path, "dual")
    (tmp_path / "network.json").write_text('{"families": "ipv4", "pods": []}')
    with pytest.raises(NetworkError, match=r"network\.json: cannot read"):
        Records(tmp_path, "ipv4")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    records = Records(tmp_path, "ipv4")
    records.allocate(UID)
    before = (tmp_path / "network.json").read_bytes()

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mesh_local.network.records.os.replace", broken)
    with pytest.raises(NetworkError, match="No space left"):
        records.allocate(uids(1)[0])
    assert list(records.pods) == [UID]
    assert [p.name for p in tmp_path.iterdir()] == ["network.json"]
    assert (tmp_path / "network.json").read_bytes() == before


def test_loss_rules():
    assert faults.loss_table({"vb": 100, "va": 12.5, "vc": 0}) == (
        "*mangle\n:TM-LOSS - [0:0]\n-A POSTROUTING -j TM-LOSS\n"
        "-A TM-LOSS -o va -m statistic --mode random --probability 0.125000 -j DROP\n"
        "-A TM-LOSS -o vb -m statistic --mode random --probability 1.000000 -j DROP\n"
        "COMMIT\n"
    )


@pytest.mark.parametrize(
    "bad",
    [
        PacketFaults(101),
        PacketFaults(-1),
        PacketFaults(0, -1),
        PacketFaults(0, 0, 5),
        PacketFaults(float("nan")),
    ],
)
def test_bad_faults_are_refused(bad):
    with pytest.raises(NetworkError, match="packet"):
        faults.check(bad)
