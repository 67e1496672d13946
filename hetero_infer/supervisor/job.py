"""`Job`: what a run is for (serving, a batch), and `RunningPipeline`: what rank 0 hands it once all are ready, one for
each replica."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hetero_infer.spec import Plan, RunConfig


class RunningPipeline:
    """Commands to the first stage's worker, and the workers' events. ``docs/supervisor.md`` has both. A survey has no
    plan."""

    def __init__(self, plan: Plan | None, send: Callable[[dict[str, Any]], None]) -> None:
        self.plan = plan
        self.send = send
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.report = events.put_nowait
        self.receive = events.get


class Job(Protocol):
    """`open` runs before anything is planned, so that a bad path or a port in use is said at once. `run` is cancelled
    when a pipeline fails or a signal comes, which ends the run with `exit_code_if_interrupted`."""

    exit_code_if_interrupted: int

    def open(self, config: RunConfig) -> None: ...

    async def run(self, pipelines: Sequence[RunningPipeline]) -> None: ...
