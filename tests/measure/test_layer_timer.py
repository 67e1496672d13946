from pathlib import Path

import pytest
import torch

from hetero_infer.measure import layer_timer
from hetero_infer.measure.layer_timer import grid, measure_layers
from hetero_infer.measure.local_devices import LocalDevice
from hetero_infer.spec import UNQUANTISED, Choice, InputError, ModelSpec, Phase, ProfileTable, Workload
from tests.tiny_model import TINY

CHOICES = (Choice(4, 32), UNQUANTISED)
WORKLOAD = Workload(batch_size=3, prompt_tokens=8, new_tokens=4)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ProfileTable:
    monkeypatch.setattr(layer_timer, "ENOUGH_S", 0.0)
    spec = ModelSpec.from_config(TINY, "tiny")
    return measure_layers(spec, "tiny", "cpu", CHOICES, WORKLOAD, threads=1, head_choices=CHOICES)


def test_every_grid_point_has_positive_seconds_for_every_choice(table: ProfileTable) -> None:
    assert all(row.seconds > 0 for row in table.rows)
    points = {(row.model, row.choice, row.phase, row.batch, row.input_tokens, row.past_tokens) for row in table.rows}
    assert len(points) == len(table.rows) == len(grid(WORKLOAD)) * (2 * len(CHOICES) + 1)
    assert {row.layer_kind for row in table.rows} == {"decoder", "embedding", "head"}
    assert {row.choice for row in table.rows if row.layer_kind == "head"} == set(CHOICES)
    assert {row.choice for row in table.rows if row.layer_kind == "embedding"} == {UNQUANTISED}


def test_the_grid_covers_the_workload() -> None:
    points = grid(WORKLOAD)
    assert {point.batch for point in points} == {1, 2, 3}
    assert {point.input_tokens for point in points if point.phase is Phase.PREFILL} == {4, 8}
    assert {point.past_tokens for point in points if point.phase is Phase.DECODE} == {8, 11}
    assert {point.batch for point in grid(Workload(12, 1, 1))} == {1, 2, 4, 8, 12}


def test_the_header_says_where_it_was_measured(table: ProfileTable, tmp_path: Path) -> None:
    assert table.header["cpu.threads"] == "1"
    assert table.header["cpu.torch"] == torch.__version__
    facts = {"date", "hardware", "threads", "torch", "dtype", "copies", "neighbours", "cores"}
    facts |= {"holdout_mean", "holdout_worst"}
    assert set(table.header) == {f"cpu.{fact}" for fact in facts}
    table.save(tmp_path / "profile.csv")
    assert ProfileTable.load(tmp_path / "profile.csv").header == table.header


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure")
def test_a_gpu_that_is_not_here_is_not_measured() -> None:
    with pytest.raises(InputError, match="no CUDA device 0 here to measure as t4"):
        measure_layers(ModelSpec.from_config(TINY, "tiny"), "tiny", "t4", CHOICES, WORKLOAD, threads=1)


def test_of_several_gpus_the_one_of_that_type_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [LocalDevice("Tesla T4", "t4", 1, 1), LocalDevice("Tesla P100", "p100", 1, 1)]
    monkeypatch.setattr(layer_timer, "cuda_devices", lambda: here)
    index = {name: layer_timer._device_here(name, None).index for name in ("t4", "p100", "named-by-hand")}
    assert index == {"t4": 0, "p100": 1, "named-by-hand": 0}
    assert layer_timer._device_here("t4", 1).index == 1, "a survey knows its slot"
    with pytest.raises(InputError, match="no CUDA device 2 here"):
        layer_timer._device_here("t4", 2)


def test_measuring_leaves_the_thread_count_as_it_was() -> None:
    torch.set_num_threads(1)
    with layer_timer._threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("choice", CHOICES)
def test_random_layers_have_finite_weights(choice: Choice) -> None:
    spec = ModelSpec.from_config(TINY, "tiny")
    for position in range(spec.num_layers):
        layer = layer_timer.random_layer(spec, position, choice, torch.float32, torch.device("cpu"))
        assert all(tensor.isfinite().all() for tensor in layer.state_dict().values())
