"""Start a launcher on the first host of a cluster, wait with a deadline, and look at what is left on every host."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.hosts.cluster import ROOT, Cluster
from tests.prepared import RunFiles
from tests.supervisor.running import wait_until

BIN = Path(sys.executable).parent
MPIRUN = shutil.which("mpirun")
FAKE = ("tests/supervisor/launch_fake.py", "batch")
REAL = ("launch/batch.py",)


class Run:
    """A batch over the hosts. What it writes is on their disks, what it says in `said_path` on the machine's."""

    def __init__(self, cluster: Cluster, said_path: Path) -> None:
        self.cluster = cluster
        self._said_path = said_path
        self._launcher: subprocess.Popen[bytes] | None = None

    def under_deepspeed(
        self,
        files: RunFiles,
        batch: Path,
        script: Sequence[str] = REAL,
        options: Sequence[str] = (),
        hostfile: Path | None = None,
        with_plan: bool = True,
    ) -> None:
        launcher = ["deepspeed", "--hostfile", str(hostfile or files.hostfile), *options]
        self._start([*launcher, *script, *self._arguments(files, batch, with_plan)])

    def under_mpirun(self, files: RunFiles, batch: Path, script: Sequence[str] = REAL) -> None:
        launcher = ["mpirun", "--allow-run-as-root", "-x", "PYTHONPATH", "--hostfile", str(files.hostfile), "-n", "3"]
        self._start([*launcher, sys.executable, *script, *self._arguments(files, batch, with_plan=True)])

    def wait(self, deadline_s: float) -> int:
        """The launcher's exit code, once nothing of the run is left on any host."""
        wait_until(lambda: self._launcher.poll() is not None and not self.cluster.processes(), deadline_s, self.explain)
        return self._launcher.returncode

    def wait_for_the_end_of_the_job(self, deadline_s: float) -> None:
        """Of supervisors, which DeepSpeed gives a local rank, and of workers; the launcher may still be there."""
        wait_until(
            lambda: not re.search(r"--local_rank|pipeline\.worker", str(self.cluster.processes())),
            deadline_s,
            self.explain,
        )

    def wait_for_first_answer(self, files: RunFiles, deadline_s: float) -> None:
        part = self.cluster.head.path(files.path / "out.jsonl.part")
        wait_until(lambda: part.exists() and part.stat().st_size > 0, deadline_s, self.explain)

    def interrupt(self) -> None:
        """As Ctrl-C does: the launcher and what it started on the head, no other host."""
        os.killpg(self._launcher.pid, signal.SIGINT)

    def kill_launcher(self) -> None:
        """With its pdsh and ssh, so that nobody hears any more what the hosts say."""
        for pid, words in self.cluster.head.processes().items():
            if words.startswith(("ssh ", "pdsh ")) or f"{BIN}/deepspeed " in words:
                os.kill(pid, signal.SIGKILL)

    def answers_file(self, files: RunFiles) -> Path:
        return self.cluster.head.path(files.path / "out.jsonl")

    def said(self) -> str:
        return self._said_path.read_text(errors="replace")

    def explain(self) -> str:
        return f"running: {self.cluster.processes()}\n{self.said()}"

    def clean_up(self) -> None:
        if self._launcher:
            self._launcher.kill()
            self._launcher.wait()

    def _arguments(self, files: RunFiles, batch: Path, with_plan: bool) -> list[str]:
        arguments = ["-c", str(files.config), "-i", str(batch), "-o", str(files.path / "out.jsonl")]
        return [*arguments, "--plan", str(files.plan)] if with_plan else arguments

    def _start(self, command: Sequence[str]) -> None:
        path = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"PATH": path, "HOME": "/root", "PYTHONPATH": str(ROOT)}
        with self._said_path.open("wb") as said:
            self._launcher = subprocess.Popen(
                self.cluster.head.command(command, ROOT),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
