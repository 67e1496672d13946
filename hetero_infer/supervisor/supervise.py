"""`supervise`: one supervisor process, from its place to its exit code. What the scripts in launch/ call."""

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from hetero_infer.spec import HeteroInferError
from hetero_infer.supervisor.coordinator import Coordinator
from hetero_infer.supervisor.job import Job
from hetero_infer.supervisor.json_lines import JsonLines
from hetero_infer.supervisor.member import Member, join
from hetero_infer.supervisor.place import Place
from hetero_infer.supervisor.pulse import BEAT_S
from hetero_infer.supervisor.say import STDERR, say, somebody_listens
from hetero_infer.supervisor.setup import Setup


def supervise(job: Job, setup: Setup) -> int:
    """Run this slot's supervisor to its end; returns the exit code. On rank 0 the `job` has run when it is 0."""
    interruption = Interruption()
    try:
        place = Place.from_environment()
        with tempfile.TemporaryDirectory(prefix="hetero-infer-") as folder:
            return asyncio.run(_run(place, job, setup, Path(folder), interruption))
    except HeteroInferError as error:
        say(error)
        return error.exit_code


class Interruption:
    """SIGINT, SIGTERM and the loss of the launcher: the first one is acted on, repetitions are not.

    A launcher that is killed, or `mpirun` at the second Ctrl-C, leaves without a signal to anybody: our parent is
    another one then, or, where ssh stands between, nobody listens to us any more.
    """

    def __init__(self) -> None:
        self._launcher = os.getppid()
        self._in_a_terminal = os.isatty(STDERR)  # one that is closed sends a signal to those who want it
        self._came = False
        self._act: Callable[[], object] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def act(self, action: Callable[[], object]) -> None:
        """What a signal does from now on, also one that came already."""
        loop = asyncio.get_running_loop()
        self._act = lambda: None if loop.is_closed() else loop.call_soon_threadsafe(action)
        if self._came:
            action()

    async def watch_launcher(self) -> None:
        while os.getppid() == self._launcher and (self._in_a_terminal or somebody_listens()):
            await asyncio.sleep(BEAT_S)
        self._receive()

    def _receive(self, *signal_and_frame: object) -> None:
        if not self._came and self._act:
            self._act()
        self._came = True


async def _run(place: Place, job: Job, setup: Setup, folder: Path, interruption: Interruption) -> int:
    watching = asyncio.create_task(interruption.watch_launcher()) if place.was_launched else None
    try:
        return await (_lead if place.rank == 0 else _follow)(place, job, setup, folder, interruption)
    finally:
        if watching:
            watching.cancel()


async def _lead(place: Place, job: Job, setup: Setup, folder: Path, interruption: Interruption) -> int:
    coordinator = Coordinator(place, job, setup)
    interruption.act(coordinator.interrupt)
    near, far = socket.socketpair()
    member = Member(place, await JsonLines.over(near), setup, folder)
    exit_code, _ = await asyncio.gather(coordinator.run(await JsonLines.over(far)), member.run())
    return exit_code


async def _follow(place: Place, job: Job, setup: Setup, folder: Path, interruption: Interruption) -> int:
    joining = asyncio.ensure_future(join(place, setup.limits.join_s))
    interruption.act(joining.cancel)
    try:
        connection = await joining
    except asyncio.CancelledError:
        return job.exit_code_if_interrupted
    member = Member(place, connection, setup, folder)
    interruption.act(member.interrupt)
    return await member.run()
