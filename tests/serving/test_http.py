"""The HTTP front over a pipeline without a model. Processes and ports are tested with the supervisors."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx

from hetero_infer.serving.engine_client import EngineClient
from hetero_infer.serving.http import build_app
from hetero_infer.serving.served_model import ServedModel


def with_client(model: ServedModel, pipeline, scenario: Callable[[httpx.AsyncClient], Awaitable[object]]) -> object:
    async def run() -> object:
        engine = EngineClient([pipeline], model, gather_s=0.05)
        generating = asyncio.create_task(engine.run())
        transport = httpx.ASGITransport(build_app(engine, model))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            try:
                return await asyncio.wait_for(scenario(client), 5)
            finally:
                generating.cancel()

    return asyncio.run(run())


def test_requests_at_once_share_a_batch_and_a_bad_one_fails_alone(model: ServedModel, pipeline) -> None:
    async def scenario(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = [{"prompt": [n, n + 1], "max_tokens": 2} for n in (1, 2, 3)] + [{"prompt": [1], "max_tokens": 99}]
        return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    *good, bad = with_client(model, pipeline, scenario)
    assert [answer.json()["choices"][0]["token_ids"] for answer in good] == [[2, 1], [3, 2], [4, 3]]
    assert len(pipeline.commands) == 1
    assert bad.status_code == 400
    assert bad.json()["error"]["param"] == "max_tokens"
    assert bad.json()["error"]["type"] == "invalid_request_error"


def test_every_error_has_openais_shape(model: ServedModel, pipeline) -> None:
    async def scenario(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post("/v1/completions", content=b"{"),
            await client.post("/v1/completions", content=b"[" * 100_000),
            await client.post("/v1/completions", content=b'{"\\ud800": 1}'),
            await client.get("/v1/completions"),
            await client.get("/nowhere"),
        ]

    answers = with_client(model, pipeline, scenario)
    assert [answer.status_code for answer in answers] == [400, 400, 400, 405, 404]
    assert all(answer.json()["error"]["message"] for answer in answers)


def test_the_model_and_the_health_are_told(model: ServedModel, pipeline) -> None:
    async def scenario(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        return await client.get("/v1/models"), await client.get("/health")

    models, health = with_client(model, pipeline, scenario)
    assert models.json()["data"][0]["id"] == "tiny"
    assert health.status_code == 200


def test_a_conversation_is_answered_in_openais_shape(speaking_model: ServedModel, pipeline) -> None:
    body = {"messages": [{"role": "user", "content": "Once"}], "logprobs": True, "top_logprobs": 1, "seed": 3}

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json=body)

    answer = with_client(speaking_model, pipeline, scenario).json()
    prompt = speaking_model.tokenizer.encode("<|endoftext|>user: Once\nassistant:", is_complete=True)
    assert pipeline.commands[0]["requests"][0]["prompt"] == tuple(prompt)
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == speaking_model.tokenizer.decode(prompt[::-1])
    assert choice["finish_reason"] == "length" and choice["token_ids"] == prompt[::-1]
    first = choice["logprobs"]["content"][0]
    assert first["token"] == ":" and first["bytes"] == [58] and first["logprob"] == -prompt[-1]
    assert first["top_logprobs"] == [{"token": "<|endoftext|>", "logprob": 0.0, "bytes": list(b"<|endoftext|>")}]


def test_a_model_without_a_chat_template_says_so(model: ServedModel, pipeline) -> None:
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}]})

    answer = with_client(model, pipeline, scenario)
    assert answer.status_code == 400
    assert "no chat template; send a prompt to /v1/completions" in answer.json()["error"]["message"]
