import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import read_tokenised, read_tokens
from hetero_infer.measure.perplexity import measure_perplexity
from hetero_infer.spec import InputError
from tests.tiny_model import write_tiny_model

SENTENCE = "It is a truth universally acknowledged that a café in want of custom must be in possession of good bread. "


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(write_tiny_model(tmp_path / "tiny", with_tokenizer=True, num_hidden_layers=1))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 3)
    return path


def test_it_is_the_mean_log_probability_of_each_windows_tokens(folder: ModelFolder, text: Path) -> None:
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
    assert found == measure_perplexity(model, folder, text, context_tokens=32, stride_tokens=32)


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 8), (20, 19), (7, 1), (200, 3)])
def test_sliding_windows_give_what_transformers_gives_token_by_token(
    folder: ModelFolder, text: Path, context: int, stride: int
) -> None:
    """By brute force: each token is looked for in the first window that predicts it."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder.path, torch_dtype=torch.float32).eval()
    tokens = read_tokens(folder, text)
    with torch.no_grad():
        windows = {
            start: theirs(tokens[None, start : start + context]).logits[0].double().log_softmax(-1)
            for start in range(0, len(tokens), stride)
        }
    losses = []
    for place in range(len(tokens)):
        holding = [start for start in windows if start <= place < start + context]
        if holding and place > holding[0]:
            losses.append(-windows[holding[0]][place - holding[0] - 1, tokens[place]].item())
    found = measure_perplexity(single_process_model(folder), folder, text, context, stride)
    assert found.scored_tokens == len(losses)
    assert found.nats_per_token == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(folder: ModelFolder, text: Path) -> None:
    model = single_process_model(folder)
    model.layers[-1].lm_head.weight.zero_()
    assert measure_perplexity(model, folder, text).perplexity == pytest.approx(2048, rel=1e-4)


def test_tokenizers_compare_by_bytes(folder: ModelFolder, text: Path, tmp_path: Path) -> None:
    """Models that know nothing pay for each token what their vocabulary costs; one has a token for each byte."""
    bytewise = write_tiny_model(tmp_path / "bytewise", vocab_size=2048, num_hidden_layers=1)
    content = json.loads((folder.path / "tokenizer.json").read_text())
    content["model"]["merges"] = []
    (bytewise / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(folder.path / "config.json", bytewise)
    found = []
    for which in (folder, ModelFolder(bytewise)):
        model = single_process_model(which)
        model.layers[-1].lm_head.weight.zero_()
        found.append(measure_perplexity(model, which, text, context_tokens=256, stride_tokens=255))
        first = read_tokenised(which, text).ends[0]
        assert found[-1].scored_bytes == len((SENTENCE * 3).encode()) - first
    merged, single = found
    assert single.scored_tokens == single.scored_bytes > 2 * merged.scored_tokens
    assert merged.perplexity == pytest.approx(single.perplexity)
    assert single.bits_per_byte == pytest.approx(11)  # 2048 tokens of a byte each
    assert merged.bits_per_byte == pytest.approx(11 * merged.scored_tokens / merged.scored_bytes)


def test_a_text_of_one_token_is_refused(folder: ModelFolder, text: Path) -> None:
    text.write_text("a")
    with pytest.raises(InputError, match="needs at least 2"):
        measure_perplexity(single_process_model(folder), folder, text)


def test_a_weight_that_is_no_number_is_noticed_in_the_first_window_it_spoils(folder: ModelFolder, text: Path) -> None:
    tokens = read_tokens(folder, text)
    model = single_process_model(folder)
    broken = int(tokens[20])
    assert broken not in tokens[:20]
    model.layers[0].embed_tokens.weight[broken] = torch.nan
    with pytest.raises(InputError, match=f"{text}: for its tokens 20 to 29 the model gives "):
        measure_perplexity(model, folder, text, context_tokens=10)


def test_the_demo_tokenizer_reads_every_byte(folder: ModelFolder, text: Path) -> None:
    text.write_text("naïve ☃ 🚲\n")
    read = read_tokenised(folder, text)
    assert len(read.tokens) >= 4
    assert read.ends[-1] == len(text.read_bytes())
