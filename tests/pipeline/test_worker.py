"""What the worker of stage 0 says and hears while a batch runs. Its engine here is the first stage's half of one."""

import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from hetero_infer.pipeline.engine import PhaseSeconds
from hetero_infer.pipeline.generation import GenerationBatch, Sequence
from hetero_infer.pipeline.sampling import Sampled
from hetero_infer.pipeline.worker import _generate
from hetero_infer.spec import Phase
from hetero_infer.spec.sampling import Sampling


class Channel:
    """`answers` are the commands that come after so many tokens events."""

    def __init__(self, answers: dict[int, list[dict[str, Any]]]) -> None:
        self.sent: list[dict[str, Any]] = []
        self._answers = answers
        self._commands: deque[dict[str, Any]] = deque()

    def send(self, event: dict[str, Any]) -> None:
        self.sent.append(event)
        self._commands += self._answers.pop(len(self.of("tokens")), [])

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        assert timeout_s == 0, "the pipeline would stand still"
        return self._commands.popleft() if self._commands else None

    def of(self, kind: str, request: int | None = None) -> list[dict[str, Any]]:
        return [event for event in self.sent if event["event"] == kind and request in (None, event["request"])]


class Engine:
    """Micro-batches of one; each is on its way while the others' tokens are taken. Tokens count up from 10."""

    def __init__(self) -> None:
        self.rows: list[int] = []  # of each decode round

    def generate(self, sequences: list[Sequence], on_token: Callable[[Sequence], None]) -> PhaseSeconds:
        batch = GenerationBatch(sequences, 1, 1, torch.device("cpu"), on_token)
        every = range(len(sequences))
        self._pass(batch, Phase.PREFILL, [batch.prefill_message(i).batch.num_sequences for i in every], 0)
        for step in range(batch.rounds):
            rows = [batch.decode_message(i).batch.num_sequences for i in every]
            self.rows.append(sum(rows))
            self._pass(batch, Phase.DECODE, rows, step + 1)
        return PhaseSeconds(1.0, 2.0)

    def _pass(self, batch: GenerationBatch, phase: Phase, rows: list[int], step: int) -> None:
        for i, count in enumerate(rows):
            pairs = ((10 + step, -0.5),) if batch.sequences[i].sampling.logprobs == 0 else None
            batch.extend(phase, i, [Sampled(10 + step, pairs)] * count)


def request(number: int, **sampling: object) -> dict[str, Any]:
    fields = asdict(Sampling(**sampling))
    return {"id": number, "prompt": [1, 2], "max_tokens": 6, "sampling": fields, "stop_ids": [0]}


def test_tokens_are_told_one_by_one_with_the_logprobs_that_were_asked_for() -> None:
    channel = Channel({})
    _generate(channel, Engine(), [request(7), request(8, logprobs=0)])
    assert channel.of("tokens", 7) == [{"event": "tokens", "request": 7, "tokens": [10 + i]} for i in range(6)]
    logprobs = [[((10 + i, -0.5),)] for i in range(6)]
    assert [event["logprobs"] for event in channel.of("tokens", 8)] == logprobs
    assert [event["reason"] for event in channel.of("finished")] == ["length", "length"]
    assert channel.sent[-1] == {
        "event": "batch_done",
        "prefill_s": 1.0,
        "decode_s": 2.0,
        "prompt_tokens": 4,
        "new_tokens": 12,
    }


def test_a_cancelled_request_is_not_heard_of_again_and_costs_no_more_rows() -> None:
    """The third is on its way when it is cancelled: its token comes back and is dropped."""
    cancel = {5: [{"command": "cancel", "request": 9}, {"command": "cancel", "request": 7}]}
    channel, engine = Channel(cancel), Engine()
    _generate(channel, engine, [request(7), request(8), request(9)])
    assert [len(channel.of("tokens", number)) for number in (7, 8, 9)] == [2, 6, 1]
    assert [event["request"] for event in channel.of("finished")] == [8]
    assert engine.rows == [3, 1, 1, 1, 1]
    assert channel.sent[-1]["new_tokens"] == 9


def test_a_cancellation_that_comes_late_cancels_nothing() -> None:
    channel = Channel({1: [{"command": "cancel", "request": 3}]})  # of an earlier batch
    _generate(channel, Engine(), [request(7)])
    assert len(channel.of("tokens", 7)) == 6


def test_a_worker_leaves_before_python_is_finalised_and_what_it_said_is_heard() -> None:
    says = "import atexit\natexit.register(print, 'late')\nprint('said')\n"
    leaves = "from hetero_infer.pipeline.worker import leave\nleave(3)\n"
    left = subprocess.run([sys.executable, "-c", says + leaves], stdout=subprocess.PIPE, text=True, check=False)
    assert (left.returncode, left.stdout) == (3, "said\n")
