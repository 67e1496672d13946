"""A hostfile becomes a cluster in its order, and each mistake in it is said with its line and the way out."""

from pathlib import Path

import pytest

from hetero_infer.spec import Cluster, Device, InputError, Link
from hetero_infer.spec.cluster import GIB, device_from_json, device_to_json, parse_bytes

LINK = Link(1e-4, 1e9)
HOSTFILES = Path(__file__).parent.parent.parent / "hostfiles"


def cluster_of(text: str, tmp_path: Path) -> Cluster:
    path = tmp_path / "hostfile"
    path.write_text(text)
    return Cluster.from_hostfile(path, LINK)


def test_devices_stand_in_the_order_of_the_file(tmp_path: Path) -> None:
    cluster = cluster_of(
        """
        # our machines
        big slots=1  # gpu=v100-32

        small slots=3 # gpu=t4,t4,p100 memory=15GiB,14.5GiB,400MiB
        here slots=2  # gpu=cpu slowdown=1,2.5 memory=4GiB threads=2
        """,
        tmp_path,
    )
    assert cluster.devices == (
        Device("big", 0, "v100-32", 32 * GIB),
        Device("small", 0, "t4", 15 * GIB),
        Device("small", 1, "t4", 29 * GIB // 2),
        Device("small", 2, "p100", 400 * 2**20),
        Device("here", 0, "cpu", 4 * GIB, 1.0, 2),
        Device("here", 1, "cpu", 4 * GIB, 2.5, 2),
    )
    assert [device.element_bytes for device in cluster.devices] == [2, 2, 2, 2, 4, 4]
    assert cluster.device("small:2").type == "p100"
    assert cluster.link(cluster.devices[0], cluster.devices[1]) is LINK


@pytest.mark.parametrize("name", ["local", "mix"])
def test_the_hostfiles_that_come_with_it_can_be_read(name: str) -> None:
    if not (HOSTFILES / name).exists():
        pytest.skip(f"hostfiles/{name} is not there")
    assert len(Cluster.from_hostfile(HOSTFILES / name, LINK).devices) >= 3


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("host", "'host' does not read 'host slots=N'"),
        ("host slots=two # gpu=t4", "does not read 'host slots=N'"),
        ("host slots=1 gpu=t4", "does not read 'host slots=N'"),
        ("host slots=1", "the type of host's devices is not said; add '# gpu=t4'"),
        ("host slots=1 # gpu=t4 memroy=4GiB", "'memroy=4GiB' after the # is none of gpu, slowdown, memory, threads"),
        ("host slots=1 # a t4", "'a' after the # is none of"),
        ("host slots=3 # gpu=t4,t4", "gpu has 2 values for 3 slots; give one, or one per slot"),
        ("host slots=1 # gpu=t5", "gpu=t5 is not known; known: cpu, t4"),
        ("host slots=1 # gpu=cpu", "say how much memory a cpu device may use"),
        ("host slots=1 # gpu=t4 memory=15GB", "'15GB' is no amount of memory; write it like 400MiB"),
        ("host slots=1 # gpu=t4 memory=1.5.2GiB", "'1.5.2' is not a number"),
        ("host slots=1 # gpu=t4 memory=0GiB", "device host:0: memory must be positive"),
        ("host slots=1 # gpu=t4 slowdown=fast", "'fast' is not a number"),
        ("host slots=1 # gpu=t4 slowdown=nan", "slowdown: 'nan' is not a finite number"),
        ("host slots=1 # gpu=t4 threads=1.7", "threads = 1.7 is not a whole number"),
        ("host slots=1 # gpu=t4 slowdown=0.5", "can only be emulated as slower"),
        ("host slots=1 # gpu=t4 threads=0", "threads = 0, must be from 1 to 1024"),
        ("host slots=0 # gpu=t4", "slots=0, a host has 1 to 1024"),
        ("host slots=1 # gpu=t4\nhost slots=2 # gpu=t4", "a device stands twice in the cluster"),
        ("# nothing", "no host in it; a line reads 'host slots=2  # gpu=t4'"),
    ],
)
def test_a_mistake_is_said_with_the_way_out(line: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        cluster_of(line + "\n", tmp_path)
    assert named in str(error.value)


def test_a_mistake_is_said_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hostfile .*/hostfile, line 3: 'b slots' does not"):
        cluster_of("# cluster\na slots=1 # gpu=t4\nb slots # gpu=t4\n", tmp_path)


def test_a_hostfile_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hostfile .*/nowhere: cannot be read"):
        Cluster.from_hostfile(tmp_path / "nowhere", LINK)


def test_a_device_is_the_same_after_json() -> None:
    for device in (Device("a", 0, "t4", 5), Device("10.0.0.1", 3, "cpu", 7, 1.5, 4), Device("fe80::1", 1, "t4", 9)):
        assert device_from_json(device_to_json(device)) == device


def test_a_device_that_is_not_there_is_told_from_those_that_are() -> None:
    cluster = Cluster((Device("a", 0, "t4", 5),), LINK)
    with pytest.raises(InputError, match="no device b:0 in the cluster; it has a:0"):
        cluster.device("b:0")


def test_a_measured_link_goes_before_the_default() -> None:
    a, b = Device("a", 0, "t4", 5), Device("b", 0, "t4", 5)
    fast = Link(0, 1e10)
    cluster = Cluster((a, b), LINK, {("a", "b"): fast})
    assert cluster.link(a, b) is fast
    assert cluster.link(b, a) is LINK
    assert fast.seconds(1e10) == 1.0 and LINK.seconds(1e9) == 1.0001


@pytest.mark.parametrize(("alpha_s", "bytes_per_s"), [(-1, 1), (0, 0)])
def test_what_makes_no_link_is_refused(alpha_s: float, bytes_per_s: float) -> None:
    with pytest.raises(InputError, match="make no link"):
        Link(alpha_s, bytes_per_s)


@pytest.mark.parametrize(("text", "count"), [("1KiB", 1024), ("400 MiB", 400 * 2**20), ("0.5GiB", 2**29)])
def test_amounts_of_memory_are_read(text: str, count: int) -> None:
    assert parse_bytes(text, "here") == count
