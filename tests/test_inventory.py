"""`hetero-infer devices`: what is here, what a hostfile says, and what is known about it."""

import json
from pathlib import Path

import pytest

from hetero_infer import inventory
from hetero_infer.cli import main
from hetero_infer.measure import local_devices
from hetero_infer.measure.local_devices import LocalDevice, cpu_device
from hetero_infer.spec import Cluster, Link, LinkTable
from hetero_infer.spec.gpu_type import GIB
from tests.tiny_model import write_tiny_model

T4 = LocalDevice("Tesla T4", "t4", int(14.76 * GIB), int(14.6 * GIB))
P100 = LocalDevice("Tesla P100-PCIE-16GB", "p100", int(15.95 * GIB), 15 * GIB)
CPU = LocalDevice("a CPU, 8 cores", "cpu", 64 * GIB, int(50.26 * GIB))
CONFIG = """
[model]
path = "{path}/tiny"
[cluster]
hostfile = "{path}/hostfile"
default_link = {{ alpha_s = 2e-4, bytes_per_s = 2.5e8 }}
[workload]
batch_size = 4
prompt_tokens = 16
new_tokens = 8
[paths]
work = "{path}"
"""
HOSTFILE = "localhost slots=2 # gpu=t4,p100\nnode-b slots=1 # gpu=rtx5090 memory=31GiB\n"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "cuda_devices", lambda: [T4, P100])
    monkeypatch.setattr(inventory, "cpu_device", lambda: CPU)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "tiny")
    (tmp_path / "hostfile").write_text(HOSTFILE)
    (tmp_path / "run.toml").write_text(CONFIG.format(path=tmp_path))
    return tmp_path / "run.toml"


def test_a_machine_prints_a_line_for_a_hostfile(gpus: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["devices"]) == 0
    said = capsys.readouterr().out
    assert "localhost:0  t4 (Tesla T4)" in said and "14.8 GiB  14.6 GiB" in said and "a CPU, 8 cores" in said
    line = said.splitlines()[-1].removeprefix("for a hostfile: ")
    assert line == "localhost slots=2  # gpu=t4,p100 memory=14.7GiB,15.9GiB"
    (tmp_path / "hostfile").write_text(line)
    assert [d.type for d in Cluster.from_hostfile(tmp_path / "hostfile", Link(0, 1)).devices] == ["t4", "p100"]


def test_a_machine_without_a_gpu_offers_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "cuda_devices", list)
    monkeypatch.setattr(inventory, "cpu_device", lambda: CPU)
    found = inventory.of_this_machine()
    assert found.hostfile_line == "localhost slots=1  # gpu=cpu memory=50.2GiB", "what is free, rounded down"
    assert [(entry.name, entry.type) for entry in found.devices] == [("localhost", "cpu")]


def test_a_hostfile_alone_is_listed(gpus: None, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--hostfile", str(config.with_name("hostfile")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(d["name"], d["type"], d["memory_bytes"]) for d in found["devices"]] == [
        ("localhost:0", "t4", 16 * GIB),
        ("localhost:1", "p100", 16 * GIB),
        ("node-b:0", "rtx5090", 31 * GIB),
    ]
    assert [d["free_bytes"] for d in found["devices"]] == [T4.free_bytes, P100.free_bytes, None], "asked only here"
    assert found["links"] == [] and {d["profile"] for d in found["devices"]} == {None}


def test_with_a_config_it_says_what_is_known(gpus: None, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LinkTable({("localhost", "node-b"): Link(6e-5, 1.25e9)}).save(config.with_name("links.csv"))
    assert main(["devices", "-c", str(config)]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["localhost:0", "t4", "16.0", "GiB", "14.6", "GiB", "spec", "sheet"] in words
    assert ["node-b:0", "rtx5090", "31.0", "GiB", "-", "none"] in words
    assert ["localhost", "node-b", "60", "10.00", "measured"] in words
    assert ["node-b", "localhost", "200", "2.00", "default_link"] in words
    assert ["localhost", "localhost", "200", "2.00", "default_link"] in words


def test_a_cpu_is_measured_by_plan(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = config.with_name("cpus")
    other.write_text("localhost slots=2 # gpu=cpu memory=9MiB threads=2\n")
    assert main(["devices", "-c", str(config), "--hostfile", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["devices"]
    assert [(d["type"], d["profile"]) for d in found] == [("cpu-2", "measured by plan")] * 2
    assert all(d["free_bytes"] > 0 for d in found)


def test_a_machines_memory_is_read(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1024 kB\nMemFree:  1 kB\nMemAvailable:  512 kB\n")
    found = cpu_device(tmp_path / "meminfo")
    assert (found.type, found.memory_bytes, found.free_bytes) == ("cpu", 2**20, 2**19)
    assert local_devices._as_type("NVIDIA GeForce RTX 5090") == "nvidia-geforce-rtx-5090"
