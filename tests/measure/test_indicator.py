from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure import indicator
from hetero_infer.measure.indicator import measure_sensitivity, probe_increases
from hetero_infer.quant.round_to_nearest import round_to_nearest, step_sizes
from hetero_infer.spec import UNQUANTISED, Choice, InputError, SensitivityTable
from tests.tiny_model import write_tiny_model

CHOICES = (Choice(3, 32), Choice(4, 32), Choice(4, 64), Choice(8, 32), UNQUANTISED)


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(write_tiny_model(tmp_path))


@pytest.fixture
def windows() -> CalibrationWindows:
    return CalibrationWindows(torch.randint(99, (4, 32), generator=torch.Generator().manual_seed(0)))


def test_fewer_bits_never_look_better(folder: ModelFolder, windows: CalibrationWindows) -> None:
    table = measure_sensitivity(folder, CHOICES, windows)
    for layer in range(3):
        omega = [table.of(layer, Choice(bits, 32)) for bits in (3, 4, 8)] + [table.of(layer, UNQUANTISED)]
        assert omega == sorted(omega, reverse=True)
        assert table.of(layer, Choice(4, 64)) >= table.of(layer, Choice(4, 32))


def test_16_bits_cost_nothing_and_others_something(folder: ModelFolder, windows: CalibrationWindows) -> None:
    table = measure_sensitivity(folder, CHOICES, windows)
    assert all(row[-1] == 0 and min(row[:-1]) > 0 for row in table.omega)


def test_the_layers_sum_to_the_measured_increase(
    folder: ModelFolder, windows: CalibrationWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indicator, "probe_increases", lambda *_: [0.5, 0.2, 0.3, -0.01, 0.0])
    table = measure_sensitivity(folder, CHOICES, windows)
    sums = [sum(column) for column in zip(*table.omega, strict=True)]
    assert sums == pytest.approx([0.5, 0.2, 0.3, indicator.SMALLEST_INCREASE, 0.0])


def test_a_probe_that_breaks_the_order_is_raised(
    folder: ModelFolder, windows: CalibrationWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indicator, "probe_increases", lambda *_: [0.1, 0.2, 0.2, 0.05, 0.0])
    table = measure_sensitivity(folder, CHOICES, windows)
    assert all(row[0] >= row[1] >= row[3] for row in table.omega)


def test_a_probe_measures_the_loss_with_every_layer_rounded(folder: ModelFolder, windows: CalibrationWindows) -> None:
    choices = [Choice(3, 32), Choice(8, 32), UNQUANTISED]
    increases = probe_increases(folder, choices, windows.token_ids, range(1, 4))
    assert abs(increases[0]) > abs(increases[1])
    assert increases[2] == 0


def test_an_end_costs_what_it_alone_is_measured_to(
    folder: ModelFolder, windows: CalibrationWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = (Choice(3, 32), Choice(8, 32), UNQUANTISED)
    of = {(1, 2, 3): [0.5, 0.2, 0.0], (0,): [0.3, -0.1, 0.0], (4,): [0.1, 0.2, 0.0]}
    monkeypatch.setattr(indicator, "probe_increases", lambda _, choices, __, positions: of[tuple(positions)])
    table = measure_sensitivity(folder, choices, windows, embedding_choices=choices, head_choices=choices)
    assert table.embedding == dict(zip(choices, (0.3, indicator.SMALLEST_INCREASE, 0.0), strict=True))
    assert table.head == dict(zip(choices, (0.2, 0.2, 0.0), strict=True)), "fewer bits never look better"


def test_a_probe_rounds_an_end_alone_also_where_weights_are_tied(windows: CalibrationWindows, tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path / "tied", tie_word_embeddings=True))
    embedding, head = (probe_increases(folder, [Choice(3, 32)], windows.token_ids, [end])[0] for end in (0, 4))
    assert embedding != 0 != head != embedding


def test_the_table_says_what_it_was_made_from(folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path) -> None:
    table = measure_sensitivity(folder, CHOICES, windows)
    assert (table.model_digest, table.text_digest) == (folder.digest, windows.digest)
    table.save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == table


def test_a_method_that_does_not_exist_yet_is_refused(folder: ModelFolder, windows: CalibrationWindows) -> None:
    with pytest.raises(InputError, match="'hessian': this version has variance"):
        measure_sensitivity(folder, CHOICES, windows, method="hessian")


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rounding_moves_a_weight_by_half_a_step_at_most(bits: int) -> None:
    choice = Choice(bits, 32)
    weight = torch.randn(5, 75, generator=torch.Generator().manual_seed(bits))
    steps = step_sizes(weight, choice).repeat_interleave(32, 1)[:, :75]
    moved = (round_to_nearest(weight, choice) - weight).abs()
    assert (moved <= steps * 1.001).all(), "a whole step where the zero point was rounded too"
    assert moved.mean() < 0.3 * steps.mean()


def test_rounding_twice_is_rounding_once() -> None:
    choice = Choice(4, 32)
    once = round_to_nearest(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), choice)
    torch.testing.assert_close(round_to_nearest(once, choice), once)


def test_a_group_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 64)
    weight[:, 32:] = 1.0
    torch.testing.assert_close(round_to_nearest(weight, Choice(4, 32)), weight)
