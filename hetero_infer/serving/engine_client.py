"""`EngineClient`: many callers, one pipeline. Gathers waiting requests into batches, one in flight at a time.

In: `complete(request)` from any task. Out: its `Completion`, as soon as its sequence finishes.
"""

import asyncio
import itertools
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from hetero_infer.serving.completion import Completion, TokenLogprobs
from hetero_infer.serving.request import Request
from hetero_infer.serving.served_model import ServedModel
from hetero_infer.serving.transcript import Transcript
from hetero_infer.spec import HeteroInferError, Plan

GATHER_S = 0.01


class Pipeline(Protocol):
    """Commands in and events out as in ``docs/supervisor.md``."""

    plan: Plan

    def send(self, command: dict[str, Any]) -> None: ...

    async def receive(self) -> dict[str, Any]: ...


class PipelineLost(HeteroInferError):
    """The run ends while a request waits."""


@dataclass
class Totals:
    """Summed over the batches that are done. The seconds are the engine's."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class _Sequence:
    def __init__(self, request: Request, model: ServedModel) -> None:
        self.request = request
        self.future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._transcript = Transcript(model.tokenizer, request.prompt, request.stop)
        self._logprobs: list[TokenLogprobs] | None = None if request.sampling.logprobs is None else []

    def add(self, event: dict[str, Any]) -> bool:
        """More tokens; True if a stop string is complete with them, which finishes the sequence."""
        for position, token in enumerate(event["tokens"]):
            if self.future.done():  # the pipeline hears of it a little later
                return False
            self._transcript.add(token)
            if self._logprobs is not None:
                self._logprobs.append(tuple((other, logprob) for other, logprob in event["logprobs"][position]))
            if self._transcript.is_stopped:
                self.finish("stop")
                return True
        return False

    def finish(self, reason: str) -> None:
        if self.future.done():
            return
        said = self._transcript
        said.finish()
        self.future.set_result(
            Completion(
                prompt_tokens=len(self.request.prompt),
                tokens=tuple(said.tokens),
                finish_reason="stop" if said.is_stopped else reason,
                text=said.text,
                text_offsets=said.offsets,
                logprobs=None if self._logprobs is None else tuple(self._logprobs),
            )
        )

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class EngineClient:
    def __init__(self, pipeline: Pipeline, model: ServedModel, gather_s: float = GATHER_S) -> None:
        self.totals = Totals()
        self._pipeline = pipeline
        self._model = model
        self._gather_s = gather_s
        self.batch_size = pipeline.plan.workload.batch_size
        self._ids = itertools.count()
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._lost: PipelineLost | None = None

    async def complete(self, request: Request) -> Completion:
        if self._lost:
            raise self._lost
        sequence = _Sequence(request, self._model)
        self._waiting.append(sequence)
        self._arrived.set()
        self._idle.clear()
        return await sequence.future

    async def drain(self) -> None:
        """Until nothing waits or runs: the last answers come a little before their batch is done and counted."""
        await self._idle.wait()
        if self._lost:
            raise self._lost

    async def run(self) -> None:
        """Until cancelled; then whoever still waits is told."""
        try:
            while True:
                await self._generate(await self._gather())
                if not self._waiting:
                    self._idle.set()
        except Exception as error:
            self._lose(f"the front failed ({error!r})")
            raise
        finally:
            self._lose("the pipeline stopped before this request was answered")

    async def _gather(self) -> list[_Sequence]:
        """Whoever waits, once somebody does; a batch that is not full waits a moment for others."""
        self._arrived.clear()
        if not self._waiting:
            await self._arrived.wait()
        if len(self._waiting) < self.batch_size:
            await asyncio.sleep(self._gather_s)
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), self.batch_size))]

    async def _generate(self, batch: list[_Sequence]) -> None:
        self._running = {next(self._ids): sequence for sequence in batch}
        requests = [self._message(number, sequence.request) for number, sequence in self._running.items()]
        self._pipeline.send({"command": "generate", "requests": requests})
        while True:
            event = await self._pipeline.receive()
            match event["event"]:
                case "tokens":
                    if self._running[event["request"]].add(event):
                        self._pipeline.send({"command": "cancel", "request": event["request"]})
                case "finished":
                    self._running[event["request"]].finish(event["reason"])
                case "batch_done":
                    self._add(event)
                    return

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or PipelineLost(reason)
        for sequence in (*self._running.values(), *self._waiting):
            sequence.fail(self._lost)
        self._idle.set()

    def _message(self, number: int, request: Request) -> dict[str, Any]:
        return {
            "id": number,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "sampling": asdict(request.sampling),
            "stop_ids": self._model.stop_ids,
        }

    def _add(self, batch_done: dict[str, Any]) -> None:
        for name in ("prompt_tokens", "new_tokens", "prefill_s", "decode_s"):
            setattr(self.totals, name, getattr(self.totals, name) + batch_done[name])
