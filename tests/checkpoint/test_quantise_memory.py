"""The quantise step holds one layer and its activations, however many there are."""

from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.spec import UNQUANTISED, Choice
from hetero_infer.spec.gptq import GptqOptions
from tests.models.test_live_memory import LiveBytes
from tests.tiny_model import write_tiny_model

CHOICE = Choice(4, 64)
SHAPE = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "head_dim": 32, "vocab_size": 99}


def most_bytes(path: Path, num_layers: int, options: GptqOptions, num_windows: int) -> int:
    folder = ModelFolder(write_tiny_model(path, num_hidden_layers=num_layers, **SHAPE))
    ids = torch.randint(99, (num_windows, 64), generator=torch.Generator().manual_seed(0))
    choices = [CHOICE] * num_layers
    whole = (UNQUANTISED, *choices, UNQUANTISED)
    with LiveBytes() as live:
        quantise_layers(folder, enumerate(choices), CalibrationWindows(ids), path / "checkpoint", options, whole)
    return live.most


@pytest.mark.parametrize("options", [GptqOptions(), GptqOptions(sequential=True)], ids=["apart", "in sequence"])
def test_more_layers_take_no_more_memory(options: GptqOptions, tmp_path: Path) -> None:
    one, four = (most_bytes(tmp_path / str(count), count, options, 8) for count in (1, 4))
    assert 0 < four <= one


def test_more_text_takes_the_memory_of_its_hidden_states(tmp_path: Path) -> None:
    few, many = (most_bytes(tmp_path / str(count), 2, GptqOptions(), count) for count in (64, 128))
    hidden_states = 64 * 64 * SHAPE["hidden_size"] * 4
    print(few, many)
    assert hidden_states <= many - few <= 1.1 * hidden_states
