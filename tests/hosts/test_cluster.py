"""The hosts themselves: each has what a machine of its own has, and nothing of them stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.cluster import ROOT, Cluster, NoCluster
from tests.hosts.running import BIN
from tests.supervisor.running import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]

CLUSTER_THAT_WAITS = """
import time
from tests.hosts.cluster import Cluster
with Cluster() as cluster:
    print(*(host.pid for host in cluster.hosts.values()), flush=True)
    time.sleep(60)
"""


def test_hosts_reach_each_other_by_name_and_share_no_disk(cluster: Cluster, tmp_path: Path) -> None:
    head, far = cluster.head, cluster.hosts["node-c"]
    assert head.run("ssh", "node-c", "hostname").strip() == "node-c"
    assert head.run("ssh", far.address, "hostname", "--all-ip-addresses").split() == [far.address]
    assert "127.0.1.1" in head.run("getent", "hosts", head.name)  # what Debian does, and programs stumble over
    head.run("touch", str(tmp_path / "only-here"))
    assert head.path(tmp_path / "only-here").exists()
    assert not far.path(tmp_path / "only-here").exists() and not (tmp_path / "only-here").exists()
    far.run("test", "-e", str(BIN / "python"))
    assert not cluster.processes()


def test_a_host_without_its_cable_or_power_is_not_reached(cluster: Cluster) -> None:
    cluster.pull_cable(cluster.hosts["node-b"])
    cluster.hosts["node-c"].switch_off()
    for name in ("node-b", "node-c"):
        with pytest.raises(NoCluster, match=f"connect to host {name}"):
            cluster.head.run("ssh", "-o", "ConnectTimeout=1", name, "true")


def test_nothing_is_left_of_a_cluster_whose_maker_is_killed(machine: None) -> None:
    maker = subprocess.Popen([sys.executable, "-c", CLUSTER_THAT_WAITS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with maker:
        pids = maker.stdout.readline().split()
        assert len(pids) == 3 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        namespaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
        assert len(namespaces) == 3
        maker.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10, lambda: f"still there: {pids}")
