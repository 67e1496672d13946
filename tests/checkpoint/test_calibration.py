import json
from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.calibration import calibrate
from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows, read_tokens
from hetero_infer.models import KVCache, MicroBatch
from hetero_infer.spec import InputError, Phase
from hetero_infer.spec.config import DEMO_MODEL
from tests.tiny_model import write_tiny_model


def test_windows_are_spread_over_the_whole_text(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path, with_tokenizer=True))
    windows = CalibrationWindows.from_text(folder, DEMO_MODEL / "calibration.txt")
    assert windows.token_ids.shape == (32, 256)
    again = CalibrationWindows.from_text(folder, DEMO_MODEL / "calibration.txt")
    assert again.digest == windows.digest
    fewer = CalibrationWindows.from_text(folder, DEMO_MODEL / "calibration.txt", num_windows=2)
    assert torch.equal(fewer.token_ids, windows.token_ids[[0, -1]])


def test_a_short_text_gives_fewer_windows_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path, with_tokenizer=True))
    text = tmp_path / "short.txt"
    text.write_text("It was a dark and stormy night. " * 20)
    assert 1 < len(CalibrationWindows.from_text(folder, text, window_tokens=64).token_ids) < 32
    with pytest.raises(InputError, match="a window needs 256; give a longer text"):
        CalibrationWindows.from_text(folder, text)


def test_a_tokenizer_of_another_kind_is_read_by_transformers(tmp_path: Path) -> None:
    """A GPT-2's, as OPT has it: ``vocab.json`` and ``merges.txt``."""
    folder = ModelFolder(write_tiny_model(tmp_path))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 7, "b": 8, "ab": 9, "<|endoftext|>": 0}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (tmp_path / "text.txt").write_text("aabab")
    assert read_tokens(folder, tmp_path / "text.txt").tolist() == [7, 9, 9]


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path))
    with pytest.raises(InputError, match="no tokenizer there"):
        CalibrationWindows.from_text(folder, DEMO_MODEL / "calibration.txt")


def test_statistics_are_those_of_the_inputs(tmp_path: Path) -> None:
    """Checked where the inputs are easy to have: the attention norm of layers 0 and 1."""
    folder = ModelFolder(write_tiny_model(tmp_path))
    windows = CalibrationWindows(torch.randint(99, (5, 30), generator=torch.Generator().manual_seed(0)))
    layers = list(calibrate(folder, windows, 2))
    assert [layer.index for layer in layers] == [0, 1]
    model = single_process_model(folder)
    batch = MicroBatch(Phase.PREFILL, tuple(range(5)), (0,) * 5, (30,) * 5)
    cache = KVCache([0], 5, 30, folder.spec.num_key_value_heads, folder.spec.head_dim)
    with torch.no_grad():
        hidden = [model.layers[0](windows.token_ids.flatten(), batch, cache)]
        padding = batch.padded_rows - batch.live_rows
        hidden.append(model.layers[1](torch.cat([hidden[0], hidden[0].new_zeros(padding, 48)]), batch, cache)[:150])
        for layer, x in zip(layers, hidden, strict=True):
            x = layer.module.input_layernorm(x).double()
            found = layer.statistics["self_attn.k_proj"]
            torch.testing.assert_close(found.hessian.double(), 2 * x.t() @ x / len(x), rtol=1e-4, atol=1e-4)
            assert found.mean == pytest.approx(x.mean().item(), abs=1e-6)
            assert found.variance == pytest.approx(x.var(correction=0).item(), rel=1e-5)


def test_linears_with_one_input_share_its_statistics(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path))
    (layer,) = calibrate(folder, CalibrationWindows(torch.arange(30)[None]), 1)
    found = layer.statistics
    assert found["self_attn.q_proj"] is found["self_attn.k_proj"] is found["self_attn.v_proj"]
    assert found["mlp.gate_proj"] is found["mlp.up_proj"]
    assert len({id(statistics) for statistics in found.values()}) == 4


def test_the_pass_does_not_depend_on_how_many_windows_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path))
    windows = CalibrationWindows(torch.randint(99, (5, 30), generator=torch.Generator().manual_seed(0)))
    (together,) = calibrate(folder, windows, 1)
    monkeypatch.setattr("hetero_infer.checkpoint.calibration.ROWS_AT_ONCE", 60)
    (apart,) = calibrate(folder, windows, 1)
    for name, statistics in together.statistics.items():
        torch.testing.assert_close(apart.statistics[name].hessian, statistics.hessian)
