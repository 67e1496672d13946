"""What a folder and a plan say about a model that is served."""

import json
from pathlib import Path

import pytest

from hetero_infer.serving.served_model import ServedModel
from hetero_infer.spec import InputError
from tests.tiny_model import TINY


@pytest.mark.parametrize(
    ("content", "stop_ids"),
    [(None, (0,)), ({}, (0,)), ({"eos_token_id": 7}, (7,)), ({"eos_token_id": [7, 9]}, (7, 9))],
)
def test_the_generation_config_says_what_ends_a_text(
    tmp_path: Path, pipeline, content: dict | None, stop_ids: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    model = ServedModel.load(tmp_path, pipeline.plan)
    assert model.stop_ids == stop_ids
    assert (model.prompt_tokens, model.context_tokens, model.tokenizer) == (8, 16, None)


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1, null]}'])
def test_a_generation_config_that_cannot_be_is_named(tmp_path: Path, pipeline, content: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        ServedModel.load(tmp_path, pipeline.plan)
