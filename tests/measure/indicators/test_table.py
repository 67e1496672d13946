from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure.indicators import table as table_file
from hetero_infer.measure.indicators.measured import alone
from hetero_infer.measure.indicators.probes import NO_PROBE, NOTHING, Estimate, Probe, probe_losses
from hetero_infer.measure.indicators.table import few, measure_sensitivity, never_better_when_coarser
from hetero_infer.spec import UNQUANTISED, Choice, InputError, SensitivityTable
from hetero_infer.spec.sensitivity import METHODS

CHOICES = (Choice(3, 32), Choice(4, 32), Choice(4, 64), Choice(8, 32), UNQUANTISED)
ENDS = {"embedding_choices": (Choice(8, 64), UNQUANTISED), "head_choices": (Choice(3, 32), Choice(8, 64), UNQUANTISED)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_order_of_choices_and_gives_nothing_away(
    method: str, folder: ModelFolder, windows: CalibrationWindows
) -> None:
    table = measure_sensitivity(folder, CHOICES, windows, method, **ENDS)
    rows = [*table.omega, (*list(table.head.values())[:2], 0.0)]
    assert len(table.omega) == 3 and all(row[-1] == 0 and min(row[:-1]) > 0 for row in rows)
    for layer in range(3):
        omega = [table.of(layer, Choice(bits, 32)) for bits in (3, 4, 8)] + [table.of(layer, UNQUANTISED)]
        assert omega == sorted(omega, reverse=True)
        assert table.of(layer, Choice(4, 64)) >= table.of(layer, Choice(4, 32))
    assert table.head[Choice(3, 32)] >= table.head[Choice(8, 64)] > 0 < table.embedding[Choice(8, 64)]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_inputs_give_the_same_table_and_a_file_keeps_it(
    method: str, folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path
) -> None:
    table = measure_sensitivity(folder, CHOICES, windows, method, **ENDS)
    assert table == measure_sensitivity(folder, CHOICES, windows, method, **ENDS)
    assert (table.method, table.model_digest, table.text_digest) == (method, folder.digest, windows.digest)
    table.save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == table


def test_measured_is_the_increase_with_one_layer_alone(folder: ModelFolder, windows: CalibrationWindows) -> None:
    choices = (Choice(3, 32), UNQUANTISED)
    table = measure_sensitivity(folder, choices, windows, "measured")
    without, *losses = probe_losses(
        folder, [NO_PROBE, *(alone(layer, choices[0]) for layer in range(3))], windows.token_ids
    )
    for layer, of in enumerate(losses):
        increases = of - without
        assert table.omega[layer][0] == pytest.approx(max(increases.mean().item(), 1e-6))
        assert table.errors.omega[layer][0] == pytest.approx(increases.std().item() / 2)
    assert table.errors.scale == (0.0, 0.0)


@pytest.mark.parametrize("method", ["variance", "variance-stochastic", "hessian", "fisher", "random"])
def test_a_cheap_method_sums_to_what_all_layers_together_lose(
    method: str, folder: ModelFolder, windows: CalibrationWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = dict(zip(CHOICES, (0.5, 0.2, 0.3, 0.01, 0.0), strict=True))

    def told(_: ModelFolder, probes: list[Probe], text: torch.Tensor) -> dict[Probe, Estimate]:
        return {probe: Estimate(lost[probe.choice] * len(probe.positions) / 3, 0.1) for probe in probes}

    monkeypatch.setattr(table_file, "measure_increases", told)
    monkeypatch.setattr(table_file, "never_better_when_coarser", lambda row, _: list(row))
    table = measure_sensitivity(folder, CHOICES, windows, method)
    assert [sum(column) for column in zip(*table.omega, strict=True)] == pytest.approx(list(lost.values()))
    assert table.errors.scale == pytest.approx([0.1 / value if value else 0 for value in lost.values()])


def test_what_noise_makes_look_better_with_fewer_bits_is_raised() -> None:
    row = [Estimate(value, 0.01) for value in (0.1, 0.2, 0.15, 0.3)] + [NOTHING]
    raised = never_better_when_coarser(row, CHOICES)
    assert [one.value for one in raised] == [0.3, 0.3, 0.3, 0.3, 0.0]
    assert [one.error for one in raised] == [one.error for one in row]


def test_seeds_of_random_differ(folder: ModelFolder, windows: CalibrationWindows) -> None:
    first, second = (measure_sensitivity(folder, CHOICES, windows, "random", seed=seed).omega for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (8, 8), (9, 5), (32, 8), (100, 8)])
def test_a_few_windows_are_from_all_over_the_text(count: int, taken: int) -> None:
    windows = few(torch.arange(count)[:, None])
    assert len(windows) == taken and windows[-1] >= count * 0.8 - 1


def test_only_16_bits_costs_nothing(folder: ModelFolder, windows: CalibrationWindows) -> None:
    for method in METHODS:
        assert measure_sensitivity(folder, (UNQUANTISED,), windows, method).omega == ((0.0,),) * 3


def test_a_method_that_does_not_exist_is_refused(folder: ModelFolder, windows: CalibrationWindows) -> None:
    with pytest.raises(InputError, match="'best': this version has variance, "):
        measure_sensitivity(folder, CHOICES, windows, "best")
