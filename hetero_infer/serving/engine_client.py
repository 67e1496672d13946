"""`EngineClient`: many callers, one pipeline or replicas of it. Gathers waiting requests into batches, one in flight at
a time on each: whichever replica is free takes the next, up to its share.

In: `complete(request)` from any task. Out: its `Completion`, as soon as its sequence finishes.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
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
    """Of one replica, summed over the batches that are done. The seconds are the engine's."""

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def add(self, requests: int, batch_done: dict[str, Any]) -> None:
        self.requests += requests
        self.prompt_tokens += batch_done["prompt_tokens"]
        self.new_tokens += batch_done["new_tokens"]
        self.prefill_s += batch_done["prefill_s"]
        self.decode_s += batch_done["decode_s"]


class _Sequence:
    """`fingerprint` is that of the replica it runs on."""

    def __init__(self, request: Request, model: ServedModel) -> None:
        self.request = request
        self.fingerprint = ""
        self.future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._transcript = Transcript(model.tokenizer, request.prompt, request.stop)
        self._logprobs: list[TokenLogprobs] | None = None if request.sampling.logprobs is None else []
        self._prompt_logprobs: tuple[float, ...] = ()

    def add(self, event: dict[str, Any]) -> bool:
        """More tokens; True if a stop string is complete with them, which finishes the sequence."""
        self._prompt_logprobs += tuple(event.get("prompt_logprobs", ()))
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
                prompt_logprobs=self._prompt_logprobs,
                fingerprint=self.fingerprint,
            )
        )

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class EngineClient:
    def __init__(self, pipelines: Sequence[Pipeline], model: ServedModel, gather_s: float = GATHER_S) -> None:
        self.totals = tuple(Totals() for _ in pipelines)
        self.batch_size = sum(pipeline.plan.workload.batch_size for pipeline in pipelines)
        self._pipelines = pipelines
        self._model = model
        self._gather_s = gather_s
        self._ids = itertools.count()
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self._gathering = asyncio.Lock()
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
        feeding = [asyncio.create_task(self._feed(*each)) for each in zip(self._pipelines, self.totals, strict=True)]
        try:
            await asyncio.gather(*feeding)
        except Exception as error:
            self._lose(f"the front failed ({error!r})")
            raise
        finally:
            for task in feeding:
                task.cancel()
            self._lose("the pipeline stopped before this request was answered")

    async def _feed(self, pipeline: Pipeline, totals: Totals) -> None:
        while True:
            async with self._gathering:
                batch = await self._gather(pipeline.plan.workload.batch_size)
                running = {next(self._ids): sequence for sequence in batch}
                self._running |= running
            await self._generate(pipeline, running, totals)
            for number in running:
                del self._running[number]
            if not self._waiting and not self._running:
                self._idle.set()

    async def _gather(self, most: int) -> list[_Sequence]:
        """Whoever waits, once somebody does; a batch that is not full waits a moment for others."""
        self._arrived.clear()
        if not self._waiting:
            await self._arrived.wait()
        if len(self._waiting) < most:
            await asyncio.sleep(self._gather_s)
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), most))]

    async def _generate(self, pipeline: Pipeline, batch: dict[int, _Sequence], totals: Totals) -> None:
        for sequence in batch.values():
            sequence.fingerprint = pipeline.plan.fingerprint
        requests = [self._message(number, sequence.request) for number, sequence in batch.items()]
        pipeline.send({"command": "generate", "requests": requests})
        while True:
            event = await pipeline.receive()
            match event["event"]:
                case "tokens":
                    if batch[event["request"]].add(event):
                        pipeline.send({"command": "cancel", "request": event["request"]})
                case "finished":
                    batch[event["request"]].finish(event["reason"])
                case "batch_done":
                    totals.add(len(batch), event)
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
