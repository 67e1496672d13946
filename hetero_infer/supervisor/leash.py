"""Run a command that the kernel kills when its parent dies, even if it is stopped or hangs (Linux).

    python -m hetero_infer.supervisor.leash PARENT_PID COMMAND…

A program of its own, because the request survives `exec` but must be made by the child, and running Python between
`fork` and `exec` of a process with threads is not safe.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def leashed(command: list[str]) -> list[str]:
    return [sys.executable, "-m", "hetero_infer.supervisor.leash", str(os.getpid()), *command]


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # else it died before the request
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
