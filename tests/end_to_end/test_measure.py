"""A cluster is measured as people do it: `launch/measure.py` under the launchers, every slot of this machine."""

import os
import re
import signal
from pathlib import Path

import pytest

from hetero_infer.spec import LinkTable, ProfileTable, RunConfig
from tests.end_to_end.running import DEEPSPEED, MPIRUN, Run, command_of
from tests.supervisor.running import wait_until
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]
CONFIG = """
[model]
path = "{path}/tiny"
[cluster]
hostfile = "{path}/hostfile"
[workload]
batch_size = 4
prompt_tokens = {prompt_tokens}
new_tokens = 4
[quality]
choices = [{{ bits = 4, group_size = 32 }}, {{ bits = 16 }}]
[paths]
work = "{path}/work"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, prompt_tokens=8)


def write_config(path: Path, prompt_tokens: int) -> Path:
    """Three slots of two types: the CPU with one thread and with two."""
    write_tiny_model(path / "tiny", max_position_embeddings=2 * prompt_tokens)
    (path / "hostfile").write_text("localhost slots=3  # gpu=cpu memory=32MiB threads=1,1,2\n")
    (path / "run.toml").write_text(CONFIG.format(path=path, prompt_tokens=prompt_tokens))
    return path / "run.toml"


def start(run: Run, launcher: str, config: Path) -> None:
    if launcher == "mpirun":
        run.under_mpirun("launch/measure.py", "-c", config)
    else:
        run.under_deepspeed("launch/measure.py", config.with_name("hostfile"), "-c", config)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("deepspeed", marks=pytest.mark.skipif(not DEEPSPEED.exists(), reason="no deepspeed")),
        pytest.param("mpirun", marks=pytest.mark.skipif(not MPIRUN, reason="there is no mpirun on this machine")),
    ],
)
def test_a_cluster_is_measured(run: Run, config: Path, launcher: str) -> None:
    start(run, launcher, config)
    assert run.wait(200) == 0, run.explain()
    profile = ProfileTable.load(RunConfig.load(config).profile)
    assert {row.device for row in profile.rows} == {"cpu", "cpu-2"}
    assert profile.header["cpu-2.threads"] == "2" and float(profile.header["cpu.holdout_mean"]) >= 0
    links = LinkTable.load(RunConfig.load(config).links)
    (link,) = links.links.values()
    assert links.links.keys() == {("localhost", "localhost")}
    assert 0 <= link.alpha_s < 1 and 1e6 < link.bytes_per_s < 1e12
    assert float(links.header["localhost to localhost.holdout_worst"]) >= 0
    said = run.said()
    assert re.search(r"^cpu-2 +localhost:2 +\d+ +[\d.]+% +[\d.]+%$", said, re.MULTILINE), said
    assert re.search(r"^localhost +localhost +\d+ +[\d.]+ +[\d.]+% +[\d.]+%$", said, re.MULTILINE), said


@pytest.mark.skipif(not DEEPSPEED.exists(), reason="no deepspeed")
def test_a_slot_that_dies_ends_the_measuring_by_name_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, prompt_tokens=2048)  # takes long enough to be killed in the middle
    start(run, "deepspeed", config)
    wait_until(lambda: "localhost to localhost: 8 sizes" in run.said(), 150, run.explain)
    (pid,) = [
        pid
        for pid in run.left_over()
        if "hetero_infer.measure.worker" in (command := command_of(pid))
        and "--device localhost:1" in command
        and "leash" not in command
    ]
    os.kill(pid, signal.SIGKILL)
    assert run.wait(30) != 0
    assert re.search(rf"rank 1 on localhost:1 \(host .*, pid {pid}\): worker killed by SIGKILL", run.said()), run.said()
    assert not RunConfig.load(config).profile.exists() and not RunConfig.load(config).links.exists()
