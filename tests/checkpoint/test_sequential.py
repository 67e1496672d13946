"""Layers calibrated on what the quantised layers before them make: their shards belong to a plan's choices."""

from pathlib import Path

import pytest
import torch

import hetero_infer.checkpoint.quantise as quantise
from hetero_infer.checkpoint.calibration import calibrate
from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.models import KVCache, MicroBatch
from hetero_infer.spec import UNQUANTISED, Choice, Phase
from hetero_infer.spec.gptq import GptqOptions
from tests.tiny_model import write_tiny_model

IN_SEQUENCE = GptqOptions(sequential=True)
C3, C4, C8 = Choice(3, 32), Choice(4, 32), Choice(8, 32)
CHOICES = (C8, C3, UNQUANTISED, C4, C8)  # embedding, three decoder layers, head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def windows() -> CalibrationWindows:
    return CalibrationWindows(torch.randint(99, (4, 32), generator=torch.Generator().manual_seed(0)))


def in_sequence(
    folder: ModelFolder, windows: CalibrationWindows, path: Path, choices: tuple[Choice, ...] = CHOICES, last: int = 4
) -> ShardStore:
    """As a host does that has the layer at this place of the pipeline, and no other."""
    wanted = [(folder.spec.layer_at(last), choices[last])]
    return quantise_layers(folder, wanted, windows, path, IN_SEQUENCE, choices)


@pytest.fixture(scope="module")
def shards(folder: ModelFolder, windows: CalibrationWindows, tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return in_sequence(folder, windows, tmp_path_factory.mktemp("checkpoint"))


def test_a_host_makes_the_layers_before_its_own_too(shards: ShardStore) -> None:
    made = sorted(path.name.partition("-")[0] for path in shards.path.glob("*.safetensors"))
    assert made == ["embedding", "head", "layer000", "layer002"]


def test_a_layer_is_calibrated_on_what_the_quantised_ones_make(
    folder: ModelFolder, windows: CalibrationWindows, shards: ShardStore
) -> None:
    """The attention norm's output of layer 2, by hand."""
    taken = calibrate(folder, windows, 3, lambda position: load_layer(folder, position, CHOICES[position], shards))
    *_, layer = taken
    model = single_process_model(folder, CHOICES[1:-1], shards, ends=(CHOICES[0], CHOICES[-1]))
    batch = MicroBatch(Phase.PREFILL, (0, 1, 2, 3), (0,) * 4, (32,) * 4)
    cache = KVCache([0, 1], 4, 32, folder.spec.num_key_value_heads, folder.spec.head_dim)
    with torch.no_grad():
        hidden = windows.token_ids.flatten()
        for before in model.layers[:3]:
            hidden = before(hidden, batch, cache)
        x = layer.module.input_layernorm(hidden).double()
    torch.testing.assert_close(
        layer.statistics["self_attn.q_proj"].hessian.double(), 2 * x.t() @ x / len(x), rtol=1e-4, atol=1e-4
    )


def test_a_shard_is_named_by_the_choices_before_it_in_their_order(shards: ShardStore) -> None:
    def name(*choices: Choice) -> str:
        return ShardStore(shards.path, shards.recipe, choices).file_of(2, C4).name

    names = {
        name(C8, C3, UNQUANTISED, C4, C8),
        name(C8, UNQUANTISED, C3, C4, C8),  # the same choices in another order
        name(C8, C4, UNQUANTISED, C4, C8),
        name(C3, C3, UNQUANTISED, C4, C8),  # another embedding
    }
    assert len(names) == 4
    assert name(*CHOICES) == name(C8, C3, UNQUANTISED, C4, UNQUANTISED)  # what comes after does not matter


def test_what_a_plan_shares_with_another_is_used_again(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_sequence(folder, windows, tmp_path)
    made, original = [], quantise._quantise
    monkeypatch.setattr(quantise, "_quantise", lambda layer, *rest: made.append(layer.index) or original(layer, *rest))
    in_sequence(folder, windows, tmp_path, (C8, C3, UNQUANTISED, C8, C8))
    assert made == [2, "head"]


def test_a_kill_between_layers_changes_no_byte_of_what_comes_out(
    folder: ModelFolder,
    windows: CalibrationWindows,
    shards: ShardStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = quantise._quantise

    def killed_at_layer_2(layer: object, *rest: object) -> None:
        if layer.index == 2:
            raise KeyboardInterrupt
        original(layer, *rest)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(quantise, "_quantise", killed_at_layer_2)
        in_sequence(folder, windows, tmp_path)
    assert {path.name[:8] for path in tmp_path.glob("*.safetensors")} == {"embeddin", "layer000"}
    in_sequence(folder, windows, tmp_path)
    expected = {path.name: path.read_bytes() for path in shards.path.glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == expected


def test_hosts_that_quantise_their_own_stages_have_the_same_shards(
    folder: ModelFolder, windows: CalibrationWindows, shards: ShardStore, tmp_path: Path
) -> None:
    first = in_sequence(folder, windows, tmp_path / "first", last=1)
    found = ShardStore.of_model(tmp_path / "first", folder.digest, CHOICES)
    assert found.file_of(0, C3).read_bytes() == shards.file_of(0, C3).read_bytes()
    assert not first.has(2, C4)


def test_it_makes_up_for_errors_of_the_layers_before(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path
) -> None:
    """All at 3 bits: the logits on the calibration windows are nearer to the unquantised ones."""
    choices = (UNQUANTISED, C3, C3, C3, UNQUANTISED)
    exact = single_process_model(folder).logits(windows.token_ids)
    errors = {}
    for name, options in {"apart": GptqOptions(), "in sequence": IN_SEQUENCE}.items():
        shards = quantise_layers(folder, enumerate(choices[1:-1]), windows, tmp_path, options, choices)
        errors[name] = (single_process_model(folder, choices[1:-1], shards).logits(windows.token_ids) - exact).norm()
    assert errors["in sequence"] < errors["apart"]
