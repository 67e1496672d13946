"""A model of 100 tokens with room for 16 of them, and a pipeline that answers with the prompt reversed.

Where log-probabilities are asked for, a token's own is minus itself, and that of the likeliest ones is 0.
"""

import asyncio
from typing import Any

import pytest

from hetero_infer.serving.served_model import ServedModel
from hetero_infer.serving.tokenizer import Tokenizer
from hetero_infer.spec import UNQUANTISED, Device, Plan, StagePlan, Workload
from hetero_infer.spec.config import DEMO_MODEL

BATCH_SIZE = 4
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}{{ raise_exception('who is a ' + message.role) }}"
    "{% endif %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class ReversingPipeline:
    """Keeps the commands it got. Tokens come one by one."""

    def __init__(self, batch_size: int = BATCH_SIZE) -> None:
        self.plan = Plan(
            model={"path": "tiny", "digest": "", "num_hidden_layers": 1},
            devices=(Device("localhost", 0, "cpu", 2**30),),
            workload=Workload(batch_size, prompt_tokens=8, new_tokens=8),
            stages=(StagePlan("localhost:0", (UNQUANTISED,) * 3),),
            prefill_micro_batch_size=1,
            decode_micro_batch_size=1,
        )
        self.commands: list[dict[str, Any]] = []
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.receive = self._events.get

    def send(self, command: dict[str, Any]) -> None:
        self.commands.append(command)
        if command["command"] == "cancel":
            return
        requests = command["requests"]
        for request in requests:
            count = request["sampling"]["logprobs"]
            for token in request["prompt"][::-1][: request["max_tokens"]]:
                event = {"event": "tokens", "request": request["id"], "tokens": [token]}
                if count is not None:
                    event["logprobs"] = [[[token, -float(token)], *([other, 0.0] for other in range(count))]]
                self._events.put_nowait(event)
            self._events.put_nowait({"event": "finished", "request": request["id"], "reason": "length"})
        counts = {"prompt_tokens": sum(len(r["prompt"]) for r in requests), "new_tokens": len(requests)}
        self._events.put_nowait({"event": "batch_done", "prefill_s": 1.0, "decode_s": 0.5, **counts})


@pytest.fixture
def model() -> ServedModel:
    return ServedModel("tiny", vocab_size=100, stop_ids=(0,), prompt_tokens=15, cache_tokens=15)


@pytest.fixture
def speaking_model() -> ServedModel:
    """The demo model's tokenizer, with a chat template."""
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    tokenizer._tokenizer.chat_template = CHAT_TEMPLATE
    return ServedModel("demo", 2048, (0,), prompt_tokens=64, cache_tokens=127, tokenizer=tokenizer)


@pytest.fixture
def pipeline() -> ReversingPipeline:
    return ReversingPipeline()
