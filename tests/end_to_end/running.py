"""Start the real scripts under the real launchers, wait with a deadline, and leave no process behind."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hetero_infer.supervisor.leash import leashed
from tests.supervisor.running import LAUNCHER_VARIABLES, free_port, running_commands, wait_until

ROOT = Path(__file__).parent.parent.parent
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
MPIRUN = shutil.which("mpirun")


class Run:
    """One run. Every process of it names `path` in its arguments, and so can be told from all others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None

    def under_deepspeed(self, script: str, hostfile: Path, *arguments: object) -> None:
        one_host = ["--no_ssh_check", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
        self.start([str(DEEPSPEED), "--hostfile", str(hostfile), *one_host, script, *map(str, arguments)])

    def under_mpirun(self, script: str, *arguments: object) -> None:
        many = ["-n", "3", "--allow-run-as-root", "--oversubscribe"]
        self.start([str(MPIRUN), *many, sys.executable, script, *map(str, arguments)])

    def start(self, command: Sequence[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with (self.path / "said").open("wb") as said:
            self.process = subprocess.Popen(
                leashed(list(command)), env=environment, cwd=ROOT, stdout=said, stderr=said, start_new_session=True
            )

    def wait(self, deadline_s: float) -> int:
        """The launcher's exit code, once nothing of the run is left."""
        wait_until(lambda: self.process.poll() is not None and not self.left_over(), deadline_s, self.explain)
        return self.process.returncode

    def worker_pid(self, device: str) -> int:
        found = [
            pid
            for pid in self.left_over()
            if re.search(rf"-m hetero_infer\.pipeline\.worker .*--device {device} ", command_of(pid) + " ")
            and "supervisor.leash" not in command_of(pid)
        ]
        assert len(found) == 1, f"workers on {device}: {found}\n{self.explain()}"
        return found[0]

    def said(self) -> str:
        return (self.path / "said").read_text(errors="replace")

    def explain(self) -> str:
        return f"left over: {[command_of(pid) for pid in self.left_over()]}\n{self.said()}"

    def left_over(self) -> list[int]:
        """The processes of the session that the launcher leads, and those that name this run's folder."""
        return [pid for pid, command in running_commands() if self._is_ours(pid, command)]

    def _is_ours(self, pid: int, command: str) -> bool:
        if not command.strip():  # a process that has ended
            return False
        with contextlib.suppress(OSError):
            return str(self.path) in command or os.getsid(pid) == self.process.pid
        return False

    def clean_up(self) -> None:
        if self.process:
            for pid in self.left_over():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(5)


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
