import math
from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import read_tokens
from hetero_infer.measure.perplexity import measure_perplexity
from hetero_infer.spec import InputError
from tests.tiny_model import write_tiny_model

SENTENCE = "It is a truth universally acknowledged that a café in want of custom must be in possession of good bread. "


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(write_tiny_model(tmp_path, with_tokenizer=True, num_hidden_layers=1))


def test_it_is_the_mean_log_probability_of_each_windows_tokens(folder: ModelFolder, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(SENTENCE * 3)
    tokens = read_tokens(folder, text)
    model = single_process_model(folder)
    found = measure_perplexity(model, folder, text, context_tokens=32)
    losses = []
    for start in range(0, len(tokens), 32):
        window = tokens[start : start + 32]
        probabilities = model.logits(window[None])[0].double().log_softmax(-1)
        losses += [-probabilities[place, window[place + 1]].item() for place in range(len(window) - 1)]
    assert found.scored_tokens == len(losses)
    assert found.nats_per_token == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))
    bytes_per_token = len((SENTENCE * 3).encode()) / len(tokens)
    assert found.bits_per_byte == pytest.approx(found.nats_per_token / math.log(2) / bytes_per_token)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(folder: ModelFolder, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(SENTENCE)
    model = single_process_model(folder)
    model.layers[-1].lm_head.weight.zero_()
    assert measure_perplexity(model, folder, text).perplexity == pytest.approx(2048, rel=1e-4)


def test_a_text_of_one_token_is_refused(folder: ModelFolder, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a")
    with pytest.raises(InputError, match="needs at least 2"):
        measure_perplexity(single_process_model(folder), folder, text)


def test_the_demo_tokenizer_reads_every_byte(folder: ModelFolder, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("naïve ☃ 🚲\n")
    assert isinstance(read_tokens(folder, text), torch.Tensor)
    assert len(read_tokens(folder, text)) >= 4
