"""The same runs under the launchers that people use: DeepSpeed's, and Open MPI's."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from running import SCRIPT, RunFolder, free_port, wait_until

DEEPSPEED = Path(sys.executable).with_name("deepspeed")
MPIRUN = shutil.which("mpirun")

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED.exists(), reason="deepspeed is not installed")
needs_mpirun = pytest.mark.skipif(not MPIRUN, reason="there is no mpirun on this machine")


def under_deepspeed(folder: RunFolder, arguments: list[str]) -> None:
    one_host = ["--no_ssh_check", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    folder.start([str(DEEPSPEED), "--hostfile", f"{folder.path}/hostfile", *one_host, str(SCRIPT), *arguments])


def under_mpirun(folder: RunFolder, arguments: list[str]) -> None:
    many = ["--allow-run-as-root", "--oversubscribe"]
    folder.start([MPIRUN, "-n", "3", *many, sys.executable, str(SCRIPT), *arguments])


@needs_deepspeed
def test_a_batch_under_deepspeed(run_folder: RunFolder) -> None:
    under_deepspeed(run_folder, run_folder.batch([1, 2, 3], [4, 5]))
    assert run_folder.wait(60) == [0], run_folder.said()
    assert run_folder.answers == [[3, 2, 1], [5, 4]]


@needs_mpirun
def test_a_batch_under_mpirun(run_folder: RunFolder) -> None:
    under_mpirun(run_folder, run_folder.batch([1, 2, 3], [4, 5]))
    assert run_folder.wait(30) == [0], run_folder.said()
    assert run_folder.answers == [[3, 2, 1], [5, 4]]
    environment = run_folder.worker(slot=1)["environment"]
    assert not [name for name in environment if name.startswith(("OMPI_", "PMIX_"))]


@needs_mpirun
def test_a_stopped_worker_under_mpirun_leaves_nothing(run_folder: RunFolder) -> None:
    under_mpirun(run_folder, run_folder.batch([1, 2], [99]))
    run_folder.wait_for_first_answer()
    os.kill(run_folder.worker(slot=1)["pid"], signal.SIGSTOP)
    assert run_folder.wait(15) == [1]
    assert "stage 1 on localhost:1" in run_folder.said()


@needs_mpirun
def test_the_death_of_mpirun_ends_the_run(run_folder: RunFolder) -> None:
    under_mpirun(run_folder, run_folder.batch([1, 2], [99]))
    run_folder.wait_for_first_answer()
    run_folder.processes[0].kill()
    wait_until(lambda: not run_folder.left_over(), 10, run_folder.said)


@needs_deepspeed
def test_a_killed_worker_under_deepspeed_leaves_nothing(run_folder: RunFolder) -> None:
    under_deepspeed(run_folder, run_folder.batch([1, 2], [99]))
    run_folder.wait_for_first_answer()
    pid = run_folder.worker(slot=2)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert run_folder.wait(15) == [1]
    assert f"pid {pid}): worker killed by SIGKILL" in run_folder.said()


@needs_mpirun
def test_infeasible_under_mpirun_is_exit_code_3(run_folder: RunFolder) -> None:
    (run_folder.path / "prepared-plan.json").unlink()
    under_mpirun(run_folder, run_folder.batch([1]))
    assert run_folder.wait(30) == [3]
