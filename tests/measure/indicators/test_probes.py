from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure.indicators import probes
from hetero_infer.measure.indicators.probes import (
    NO_PROBE,
    SMALLEST_INCREASE,
    Estimate,
    Probe,
    measure_increases,
    probe_losses,
)
from hetero_infer.measure.perplexity import mean_loss
from hetero_infer.models import layers_of
from hetero_infer.quant.round_to_nearest import round_to_nearest
from hetero_infer.spec import UNQUANTISED, Choice
from tests.tiny_model import BLOOM, OPT, TINY, write_tiny_model

THREE, EIGHT = Choice(3, 32), Choice(8, 32)
PROBES = [
    NO_PROBE,
    Probe((0,), THREE),
    Probe((2,), THREE),
    Probe((3,), EIGHT),
    Probe((2,), EIGHT),
    Probe((1, 2, 3), THREE),
    Probe((4,), THREE),
]


def loss_with(folder: ModelFolder, probe: Probe, windows: torch.Tensor) -> float:
    """Of the whole model in memory, those layers replaced."""
    model = single_process_model(folder)
    for position in probe.positions:
        for name in layers_of(model.spec)[position].matrices:
            part = model.layers[position].get_submodule(name)
            part.weight.data = round_to_nearest(part.weight.data, probe.choice)
    return mean_loss(model, windows)


@pytest.mark.parametrize("family", [TINY, OPT, BLOOM], ids=["llama", "opt", "bloom"])
def test_a_probe_is_the_model_with_those_layers_replaced(
    family: dict[str, object], windows: CalibrationWindows, tmp_path: Path
) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path / "model", family=family))
    losses = probe_losses(folder, PROBES, windows.token_ids).mean(1).tolist()
    expected = [loss_with(folder, probe, windows.token_ids) for probe in PROBES]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(set(losses)) == len(losses), "no two probes round the same"


def test_windows_in_parts_lose_the_same(
    folder: ModelFolder, windows: CalibrationWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probe_losses(folder, PROBES, windows.token_ids)
    monkeypatch.setattr(probes, "ROWS_AT_ONCE", 3 * 32)
    torch.testing.assert_close(probe_losses(folder, PROBES, windows.token_ids), whole, rtol=1e-5, atol=0)


def test_hidden_states_take_no_more_bytes_than_the_model(
    folder: ModelFolder, windows: CalibrationWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "SMALL_BYTES", 0)
    held = []
    losses_of = probes._losses_of
    monkeypatch.setattr(probes, "_losses_of", lambda *these: held.append(len(these[2])) or losses_of(*these))
    many = [Probe((1 + layer % 3,), choice) for layer in range(3) for choice in (THREE, EIGHT)] * 5
    probe_losses(folder, many, windows.token_ids)
    of_window = len(many) * 32 * 48 * 4
    model_bytes = sum(file.stat().st_size for file in folder.files)
    assert sum(held) == 4 and max(held) == model_bytes // of_window < 4


def test_the_layers_before_a_probes_own_run_once_for_all(
    folder: ModelFolder, windows: CalibrationWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    load = probes.load_layer

    def counted(folder: ModelFolder, position: int) -> torch.nn.Module:
        layer = load(folder, position)
        layer.register_forward_hook(lambda *_: ran.append(position))
        return layer

    monkeypatch.setattr(probes, "load_layer", counted)
    probe_losses(folder, [NO_PROBE, Probe((2,), THREE), Probe((3,), THREE), Probe((4,), THREE)], windows.token_ids)
    assert [ran.count(position) for position in range(5)] == [1, 1, 2, 3, 4 * 4], "the head takes one window at a time"


def test_a_probe_rounds_an_end_alone_also_where_weights_are_tied(windows: CalibrationWindows, tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path / "tied", tie_word_embeddings=True))
    unquantised, embedding, head = probe_losses(
        folder, [NO_PROBE, Probe((0,), THREE), Probe((4,), THREE)], windows.token_ids
    ).mean(1)
    assert len({unquantised.item(), embedding.item(), head.item()}) == 3


def test_an_increase_is_a_mean_over_windows_with_its_standard_error() -> None:
    found = Estimate.of_increases(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    assert found.value == pytest.approx(0.25) and found.error == pytest.approx(0.129099 / 2, rel=1e-5)
    assert Estimate.of_increases(torch.tensor([0.1])).error == pytest.approx(0.1), "one window says nothing of it"


def test_no_choice_below_16_bits_is_free(folder: ModelFolder, windows: CalibrationWindows) -> None:
    assert Estimate.of_increases(torch.tensor([-0.2, -0.4])) == Estimate(SMALLEST_INCREASE, pytest.approx(0.1))
    found = measure_increases(folder, [Probe((1,), EIGHT), Probe((1,), UNQUANTISED)], windows.token_ids)
    assert found[Probe((1,), EIGHT)].value > 0
    assert found[Probe((1,), UNQUANTISED)] == Estimate(0.0, 0.0)
