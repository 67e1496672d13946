"""`Member`: what every supervisor does, rank 0 too: obey the coordinator, report, and end the worker in any case.

In: commands over the control connection. Out: events over it, and this process's exit code.
"""

import asyncio
import contextlib
import os
import socket
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import hetero_infer
from hetero_infer.spec import HeteroInferError, RunConfig
from hetero_infer.spec.cluster import device_from_json
from hetero_infer.spec.files import write_atomically
from hetero_infer.supervisor.child import run_child
from hetero_infer.supervisor.json_lines import JsonLines
from hetero_infer.supervisor.place import Place
from hetero_infer.supervisor.pulse import BEAT_S, Pulse
from hetero_infer.supervisor.say import say
from hetero_infer.supervisor.setup import Setup
from hetero_infer.supervisor.worker import Worker, worker_environment


class Member:
    """`folder` holds this supervisor's own copy of the plan, or of a survey's devices: no disk is shared."""

    def __init__(self, place: Place, coordinator: JsonLines, setup: Setup, folder: Path) -> None:
        self._place = place
        self._coordinator = coordinator
        self._config = setup.config
        self._plan = folder / "plan.json"
        self._commands = setup.commands
        self._limits = setup.limits
        self._worker: Worker | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._what_of_rank_0 = "its connection ended"

    async def run(self) -> int:
        place = self._place
        version = hetero_infer.__version__
        self._report("hello", rank=place.rank, host=place.host, node=place.node, pid=os.getpid(), version=version)
        self._do(self._beat())
        try:
            return await self._obey()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            if self._worker:
                await self._worker.end()
            await self._coordinator.flush_and_close()

    def interrupt(self) -> None:
        """A signal came: it is the coordinator's to end the run, unless it does not answer."""
        self._report("interrupted")
        asyncio.get_running_loop().call_later(self._limits.stop_s, self._coordinator.close)

    async def _obey(self) -> int:
        pulse = Pulse(self._limits.silence_s)
        self._do(self._notice_silence(pulse))
        while (message := await self._coordinator.receive()) is not None:
            pulse.heard()
            match message.get("command"):
                case "prepare":
                    self._do(self._prepare(message["plan"], message["devices"]))
                case "open_ports":
                    self._do(self._open_ports(message["address"], message["count"]))
                case "start":
                    self._do(self._run_worker(message))
                case "generate" | "cancel" | "shutdown" if self._worker:
                    self._worker.send(message)
                case "stop":
                    if message["reason"]:
                        say(message["reason"])
                    return message["exit_code"]
        say(f"rank {self._place.rank} on {self._place.host} lost rank 0 ({self._what_of_rank_0}) and stops")
        return 1

    async def _prepare(self, plan: str, devices: list[str]) -> None:
        write_atomically(self._plan, plan)
        if devices:
            folder = RunConfig.load(self._config).checkpoint
            arguments = [str(self._plan), "-c", str(self._config), "-o", str(folder)]
            command = [*self._commands.quantize, *arguments, "--devices", ",".join(devices)]
            await run_child(command, f"quantising on {self._place.host}", self._limits.terminate_s)
        self._report("prepared")

    async def _open_ports(self, address: str, count: int) -> None:
        self._report("ports_opened", ports=_free_ports(address, count))

    async def _run_worker(self, start: dict[str, Any]) -> None:
        device = device_from_json(start["device"])
        where = (start["address"], start["port"], start["own_address"])
        environment = worker_environment(start["stage"], start["num_stages"], device, *where)
        arguments = ["--plan", str(self._plan), "--config", str(self._config), "--device", device.name]
        self._worker = await Worker.start([*self._commands.worker, *arguments], environment, self._limits)
        end = await self._worker.watch(self._coordinator.send)
        self._report(
            "worker_ended",
            what=end.what,
            pid=self._worker.pid,
            clean=end.exited_cleanly,
            cause=int(end.cause),
            exit_code=end.exit_code,
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._report("heartbeat")

    async def _notice_silence(self, pulse: Pulse) -> None:
        while not pulse.is_silent:
            await asyncio.sleep(BEAT_S)
            pulse.tick()
        self._what_of_rank_0 = f"silent for {pulse.silence_s:.0f} s"
        self._coordinator.close()

    def _report(self, event: str, **facts: Any) -> None:
        self._coordinator.send({"event": event, **facts})

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """In the background; what goes wrong in it is reported, and the coordinator decides."""
        self._tasks.add(asyncio.create_task(self._reporting_failure(work)))

    async def _reporting_failure(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except HeteroInferError as error:
            self._report("failed", what=str(error), exit_code=error.exit_code)
        except Exception as error:
            traceback.print_exc()
            self._report("failed", what=f"{error!r} in its supervisor", exit_code=1)


async def join(place: Place, join_s: float) -> JsonLines:
    """Connect to rank 0, which may not be up yet."""
    deadline = asyncio.get_running_loop().time() + join_s
    while asyncio.get_running_loop().time() < deadline:
        for host, port in place.addresses:
            connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            connection.setblocking(False)
            try:
                connecting = asyncio.get_running_loop().sock_connect(connection, (host, port))
                await asyncio.wait_for(connecting, 5)
                return await JsonLines.over(connection)
            except OSError:  # a timeout is one, too
                connection.close()
        await asyncio.sleep(0.2)
    where = " or ".join(f"{host}:{port}" for host, port in place.addresses)
    raise HeteroInferError(f"rank {place.rank} on {place.host}: rank 0 did not answer at {where} within {join_s:.0f} s")


def _free_ports(address: str, count: int) -> list[int]:
    """Free now, and each another; the workers' rendezvous takes it a moment later."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as probes:
        opened = [probes.enter_context(socket.create_server((address, 0), family=family)) for _ in range(count)]
        return [probe.getsockname()[1] for probe in opened]
