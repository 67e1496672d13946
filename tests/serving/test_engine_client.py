"""Many callers share batches; one batch is in flight at a time on each replica."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hetero_infer.serving.completion import Completion
from hetero_infer.serving.engine_client import EngineClient, PipelineLost
from hetero_infer.serving.request import Request
from hetero_infer.serving.served_model import ServedModel
from hetero_infer.spec.sampling import Sampling
from tests.serving.conftest import ReversingPipeline

MODEL = ServedModel("tiny", vocab_size=100, stop_ids=(0,), prompt_tokens=15, cache_tokens=15)


def request(*prompt: int) -> Request:
    return Request(prompt, max_tokens=3, sampling=Sampling())


def with_engine(pipelines, scenario: Callable[[EngineClient], Awaitable[object]], model: ServedModel = MODEL) -> object:
    async def run() -> object:
        engine = EngineClient(pipelines if isinstance(pipelines, list) else [pipelines], model)
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
    assert set(first) == {"id", "prompt", "max_tokens", "sampling", "stop_ids"}
    assert Sampling(**first["sampling"]) == Sampling()


def test_a_lone_request_does_not_wait_for_a_full_batch(pipeline) -> None:
    completion = with_engine(pipeline, lambda engine: engine.complete(request(7)))
    told = {"finish_reason": "length", "text_offsets": (0,), "fingerprint": pipeline.plan.fingerprint}
    assert completion == Completion(prompt_tokens=1, tokens=(7,), **told)


def reversed_prompt(model: ServedModel, text: str, **fields: object) -> Request:
    """What makes the pipeline answer with `text`."""
    return Request(tuple(model.tokenizer.encode(text)[::-1]), 60, **({"sampling": Sampling()} | fields))


def test_a_stop_string_ends_the_text_before_it_and_cancels_the_rest(pipeline, speaking_model: ServedModel) -> None:
    async def scenario(engine: EngineClient) -> list[Completion]:
        asked = [reversed_prompt(speaking_model, " one two three four five six", stop=stop) for stop in stops]
        return await asyncio.gather(*map(engine.complete, asked))

    stops = (("four", "e t"), ("ee f",), ("never",), ("x",))
    completions = with_engine(pipeline, scenario, speaking_model)
    assert [completion.text for completion in completions] == [
        " on",
        " one two thr",
        " one two three four five six",
        " one two three four five si",
    ]
    assert [completion.finish_reason for completion in completions] == ["stop", "stop", "length", "stop"]
    ids = [number["id"] for number in pipeline.commands[0]["requests"]]
    cancels = [command["request"] for command in pipeline.commands if command["command"] == "cancel"]
    assert cancels == [ids[0], ids[1], ids[3]]
    made = [len(completion.tokens) for completion in completions]
    assert made[0] < made[1] < made[2] == made[3]  # as many as it took, also to complete the stop string


def test_logprobs_stand_beside_the_tokens_and_end_with_them(pipeline, speaking_model: ServedModel) -> None:
    asked = reversed_prompt(speaking_model, " one two three", stop=(" three",), sampling=Sampling(logprobs=2))
    completion = with_engine(pipeline, lambda engine: engine.complete(asked), speaking_model)
    assert completion.text == " one two"
    assert completion.logprobs == tuple(((token, -token), (0, 0.0), (1, 0.0)) for token in completion.tokens)
    assert completion.text_offsets[0] == 0 and completion.text_offsets[-1] <= len(" one two")


def test_the_engines_seconds_are_summed(pipeline) -> None:
    async def scenario(engine: EngineClient) -> EngineClient:
        for n in (1, 2):
            await engine.complete(request(n, n))
        await engine.drain()
        return engine

    (totals,) = with_engine(pipeline, scenario).totals
    assert (totals.prompt_tokens, totals.prefill_s) == (4, 2.0)


def test_replicas_get_their_shares_of_a_batch() -> None:
    async def scenario(engine: EngineClient) -> list[Completion]:
        assert engine.batch_size == 5
        return await asyncio.gather(*(engine.complete(request(n, n + 1)) for n in range(5)))

    pair = [ReversingPipeline(batch_size) for batch_size in (3, 2)]
    completions = with_engine(pair, scenario)
    assert [completion.tokens for completion in completions] == [(n + 1, n) for n in range(5)]
    sent = [[request["prompt"][0] for request in replica.commands[0]["requests"]] for replica in pair]
    assert sent == [[0, 1, 2], [3, 4]] and [len(replica.commands) for replica in pair] == [1, 1]


def test_the_replica_that_is_free_takes_the_next_batch_and_a_slow_one_holds_nobody_up() -> None:
    async def scenario(engine: EngineClient) -> EngineClient:
        first, *others = (asyncio.create_task(engine.complete(request(n))) for n in range(7))
        await asyncio.gather(*others)
        assert not first.done()
        answer(slow.commands[0])
        await first
        await engine.drain()
        return engine

    slow, fast = ReversingPipeline(1), ReversingPipeline(2)
    answer, slow.send = slow.send, slow.commands.append
    engine = with_engine([slow, fast], scenario)
    assert [len(command["requests"]) for command in fast.commands] == [2, 2, 2]
    assert [totals.requests for totals in engine.totals] == [1, 6]


def test_a_replica_that_fails_ends_the_work_of_all() -> None:
    async def run() -> None:
        failing, silent = ReversingPipeline(1), ReversingPipeline(1)
        failing.send = lambda command: failing._events.put_nowait({"event": "tokens", "request": 77, "tokens": [1]})
        silent.send = silent.commands.append
        engine = EngineClient([failing, silent], MODEL)
        generating = asyncio.create_task(engine.run())
        waiting = [asyncio.create_task(engine.complete(request(n))) for n in range(3)]
        assert all(isinstance(error, PipelineLost) for error in await asyncio.gather(*waiting, return_exceptions=True))
        with pytest.raises(KeyError):
            await generating

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_front_that_fails_leaves_nobody_waiting(pipeline) -> None:
    async def run() -> None:
        engine = EngineClient([pipeline], MODEL)
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
        engine = EngineClient([pipeline], MODEL)
        generating = asyncio.create_task(engine.run())
        waiting = [asyncio.create_task(engine.complete(request(n))) for n in range(1, 7)]
        await asyncio.sleep(0.05)
        generating.cancel()
        assert all(isinstance(error, PipelineLost) for error in await asyncio.gather(*waiting, return_exceptions=True))
        with pytest.raises(PipelineLost):
            await engine.complete(request(1))

    asyncio.run(asyncio.wait_for(run(), 5))
