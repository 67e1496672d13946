"""A text goes through a pipeline as requests for the log-probabilities of their prompts."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hetero_infer.serving.evaluation import EvaluationJob
from hetero_infer.serving.tokenizer import Tokenizer
from hetero_infer.spec import InputError
from hetero_infer.spec.config import DEMO_MODEL
from tests.serving.conftest import ReversingPipeline
from tests.tiny_model import write_tiny_model

TEXT = "She was quite sure that the café would be open. "


class ScoringPipeline(ReversingPipeline):
    """It gives each token of a prompt `1 / 1000` nats for each of its id, `factor` times."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self._factor = factor

    def send(self, command: dict[str, Any]) -> None:
        self.commands.append(command)
        for request in command["requests"]:
            logprobs = [-self._factor * token / 1000 for token in request["prompt"][1:]]
            event = {"event": "tokens", "request": request["id"], "tokens": [0], "prompt_logprobs": logprobs}
            self._events.put_nowait(event)
            self._events.put_nowait({"event": "finished", "request": request["id"], "reason": "length"})
        done = {"prefill_s": 1.0, "decode_s": 0.0, "prompt_tokens": 8, "new_tokens": 1}
        self._events.put_nowait({"event": "batch_done", **done})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 3)
    return path


def evaluated(job: EvaluationJob, *pipelines: ScoringPipeline, model: Path = DEMO_MODEL) -> EvaluationJob:
    job.open(SimpleNamespace(model=model, text=None))
    asyncio.run(asyncio.wait_for(job.run(pipelines), 20))
    return job


def test_every_token_counts_once_in_windows_as_long_as_the_plan_allows(text: Path) -> None:
    pipeline = ScoringPipeline()
    (found,) = evaluated(EvaluationJob(text, stride_tokens=3), pipeline).found
    tokens = Tokenizer.from_folder(DEMO_MODEL).encode(TEXT * 3, is_complete=True)
    assert (found.context_tokens, found.stride_tokens) == (8, 3)
    assert found.scored_tokens == len(tokens) - 1
    assert found.nats_per_token == pytest.approx(sum(tokens[1:]) / 1000 / found.scored_tokens)
    assert found.scored_bytes == len((TEXT * 3).encode()) - len("She")
    asked = [request for command in pipeline.commands for request in command["requests"]]
    assert {(request["max_tokens"], request["sampling"]["prompt_logprobs"]) for request in asked} == {(1, True)}
    assert max(len(command["requests"]) for command in pipeline.commands) == 4


def test_each_replica_has_a_figure_of_its_own(text: Path) -> None:
    one, other = evaluated(EvaluationJob(text), ScoringPipeline(), ScoringPipeline(2.0)).found
    assert other.nats_per_token == pytest.approx(2 * one.nats_per_token)


def test_a_window_that_the_plan_has_no_room_for_is_refused(text: Path) -> None:
    with pytest.raises(InputError, match="a context of 9 tokens: it must be from 2 to 8, the model's positions or"):
        evaluated(EvaluationJob(text, context_tokens=9), ScoringPipeline())


def test_a_text_needs_a_tokenizer_and_one_of_this_model(text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer there, so the text"):
        evaluated(EvaluationJob(text), ScoringPipeline(), model=write_tiny_model(tmp_path / "mute"))
    foreign = write_tiny_model(tmp_path / "foreign", with_tokenizer=True, vocab_size=99)
    with pytest.raises(InputError, match="and the model has 99; put the tokenizer there that belongs to it"):
        evaluated(EvaluationJob(text), ScoringPipeline(), model=foreign)


def test_a_probability_that_is_no_number_is_told(text: Path) -> None:
    with pytest.raises(InputError, match="for its tokens 0 to 7 the model gives probabilities that are no numbers"):
        evaluated(EvaluationJob(text), ScoringPipeline(float("nan")))
