"""`Worker`: the supervisor's side of its one child, the process with torch in it. Starts it, hears it, ends it."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hetero_infer.spec import Device, InfeasibleError, InputError
from hetero_infer.supervisor.channel import CHANNEL_VARIABLE
from hetero_infer.supervisor.child import clean_environment, end_child, start_child
from hetero_infer.supervisor.ending import Cause
from hetero_infer.supervisor.interfaces import interface_of
from hetero_infer.supervisor.json_lines import JsonLines
from hetero_infer.supervisor.pulse import BEAT_S, Pulse
from hetero_infer.supervisor.setup import Limits

# glibc's own thresholds rise with what is freed, up to keeping 64 MiB of dequantised weights that nobody uses; blocks
# on the way to them are smaller than these. MKL would keep the panels that it packs, 10 MiB and more.
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2 * 2**20), "MKL_DISABLE_FAST_MM": "1"}
# A neighbour's death reaches a worker as an error or, inside gloo, as SIGABRT; a launcher stops it with SIGTERM.
SECOND_HAND_SIGNALS = (signal.SIGABRT, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class WorkerEnd:
    """What happened, for people; `exited_cleanly` if it left with code 0."""

    what: str
    exited_cleanly: bool
    cause: Cause
    exit_code: int = 1  # what the run ends with


class Worker:
    def __init__(self, process: asyncio.subprocess.Process, channel: JsonLines, limits: Limits) -> None:
        self.pid = process.pid
        self._process = process
        self._channel = channel
        self._limits = limits
        self._pulse = Pulse(limits.loading_silence_s)
        self._was_silent = False
        self._error = ""

    @classmethod
    async def start(cls, command: Sequence[str], environment: dict[str, str], limits: Limits) -> "Worker":
        ours, theirs = socket.socketpair()
        with theirs:
            environment = environment | {CHANNEL_VARIABLE: str(theirs.fileno())}
            process = await start_child(command, environment, pass_fds=(theirs.fileno(),))
        return cls(process, await JsonLines.over(ours), limits)

    def send(self, command: dict[str, Any]) -> None:
        self._channel.send(command)

    async def watch(self, forward: Callable[[dict[str, Any]], None]) -> WorkerEnd:
        """Hand every event on until the worker ends, is silent, or closes its channel."""
        listening_for_silence = asyncio.create_task(self._kill_when_silent())
        try:
            while (event := await self._channel.receive()) is not None:
                self._pulse.heard()
                match event.get("event"):
                    case "heartbeat":
                        continue
                    case "failed":
                        self._error = str(event.get("error"))
                        continue
                    case "ready":
                        self._pulse.silence_s = self._limits.silence_s
                forward(event)
        finally:
            listening_for_silence.cancel()
        return await self._how_it_ended()

    async def end(self) -> None:
        await end_child(self._process, self._limits.terminate_s)
        self._channel.close()

    async def _kill_when_silent(self) -> None:
        while not self._pulse.is_silent:
            await asyncio.sleep(BEAT_S)
            self._pulse.tick()
        self._was_silent = True
        self._process.kill()  # it may be stopped, and then nothing else reaches it
        self._channel.close()

    async def _how_it_ended(self) -> WorkerEnd:
        try:
            code = await asyncio.wait_for(self._process.wait(), self._limits.terminate_s)
        except TimeoutError:
            return WorkerEnd("closed its channel and runs on", False, Cause.PERHAPS_A_CONSEQUENCE)
        if self._was_silent:
            return WorkerEnd(f"silent for {self._pulse.silence_s:.0f} s", False, Cause.CERTAIN)
        if code < 0:
            name = signal.Signals(-code).name
            cause = Cause.PERHAPS_A_CONSEQUENCE if -code in SECOND_HAND_SIGNALS else Cause.CERTAIN
            return WorkerEnd(f"killed by {name}" + self._said, False, cause)
        if code in (InputError.exit_code, InfeasibleError.exit_code):
            return WorkerEnd(f"refused its work{self._said}", False, Cause.CERTAIN, code)
        return WorkerEnd(f"exited with code {code}" + self._said, code == 0, Cause.PERHAPS_A_CONSEQUENCE)

    @property
    def _said(self) -> str:
        return f" ({self._error})" if self._error else ""


def worker_environment(
    stage: int, num_stages: int, device: Device, address: str, port: int, own_address: str
) -> dict[str, str]:
    """What torch and DeepSpeed read: the worker's place among the workers, not the supervisor's.

    Without an interface, gloo offers the others the address of the host's name: 127.0.1.1, as Debian writes it.
    """
    interface = interface_of(own_address)
    interfaces = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}
    return (
        interfaces
        | clean_environment(os.environ)
        | {
            "RANK": str(stage),
            "WORLD_SIZE": str(num_stages),
            "LOCAL_RANK": str(device.slot),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(device.threads),
            **HEAP,
        }
    )
