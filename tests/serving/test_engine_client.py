"""Many callers share batches; one batch is in flight at a time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hetero_infer.serving.engine_client import EngineClient, PipelineLost
from hetero_infer.serving.request import Completion, Request


def request(*prompt: int) -> Request:
    return Request(prompt, max_tokens=3, temperature=0.0, top_p=1.0, seed=0)


def with_engine(pipeline, scenario: Callable[[EngineClient], Awaitable[object]]) -> object:
    async def run() -> object:
        engine = EngineClient(pipeline, stop_ids=(0,))
        generating = asyncio.create_task(engine.run())
        try:
            return await asyncio.wait_for(scenario(engine), 5)
        finally:
            generating.cancel()

    return asyncio.run(run())


def test_requests_that_wait_together_run_together(pipeline) -> None:
    async def scenario(engine: EngineClient) -> list[Completion]:
        return await asyncio.gather(*(engine.complete(request(n, n + 1)) for n in range(1, 7)))

    completions = with_engine(pipeline, scenario)
    assert [completion.tokens for completion in completions] == [(n + 1, n) for n in range(1, 7)]
    assert [len(command["requests"]) for command in pipeline.commands] == [4, 2]
    first = pipeline.commands[0]["requests"][0]
    assert first | {"id": 0} == first
    assert set(first) == {"id", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop_ids"}


def test_a_lone_request_does_not_wait_for_a_full_batch(pipeline) -> None:
    completion = with_engine(pipeline, lambda engine: engine.complete(request(7)))
    assert completion == Completion(prompt_tokens=1, tokens=(7,), finish_reason="length")


def test_the_engines_seconds_are_summed(pipeline) -> None:
    async def scenario(engine: EngineClient) -> EngineClient:
        for n in (1, 2):
            await engine.complete(request(n, n))
        await engine.drain()
        return engine

    totals = with_engine(pipeline, scenario).totals
    assert (totals.prompt_tokens, totals.prefill_s) == (4, 2.0)


def test_a_front_that_fails_leaves_nobody_waiting(pipeline) -> None:
    async def run() -> None:
        engine = EngineClient(pipeline, stop_ids=())
        generating = asyncio.create_task(engine.run())
        pipeline.send = lambda command: pipeline._events.put_nowait({"event": "tokens", "request": 77, "tokens": [1]})
        with pytest.raises(PipelineLost, match="KeyError"):
            await engine.complete(request(1))
        with pytest.raises(KeyError):
            await generating

    asyncio.run(asyncio.wait_for(run(), 5))


def test_whoever_waits_when_the_pipeline_ends_is_told(pipeline) -> None:
    async def run() -> None:
        pipeline.send = lambda command: None  # a pipeline that never answers
        engine = EngineClient(pipeline, stop_ids=())
        generating = asyncio.create_task(engine.run())
        waiting = [asyncio.create_task(engine.complete(request(n))) for n in range(1, 7)]
        await asyncio.sleep(0.05)
        generating.cancel()
        assert all(isinstance(error, PipelineLost) for error in await asyncio.gather(*waiting, return_exceptions=True))
        with pytest.raises(PipelineLost):
            await engine.complete(request(1))

    asyncio.run(asyncio.wait_for(run(), 5))
