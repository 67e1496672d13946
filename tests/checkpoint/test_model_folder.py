from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec import Choice, InputError
from tests.tiny_model import write_tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_float_type_are_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path, dtype=dtype))
    assert folder.tensor("model.norm.weight").dtype == dtype
    layer = load_layer(folder, 1)
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {torch.float32}
    assert torch.equal(layer.mlp.up_proj.weight, folder.tensor("model.layers.0.mlp.up_proj.weight").float())


def test_weights_spread_over_files_are_the_same_model(tmp_path: Path) -> None:
    whole = ModelFolder(write_tiny_model(tmp_path / "whole"))
    spread = ModelFolder(write_tiny_model(tmp_path / "spread", num_files=3))
    assert len(spread.files) == 3
    windows = torch.arange(20)[None]
    assert torch.equal(single_process_model(whole).logits(windows), single_process_model(spread).logits(windows))


def test_a_layer_reads_its_own_tensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path))
    read = _spy_on_reads(monkeypatch)
    load_layer(folder, 2)
    assert len(read) == 9
    assert all(name.startswith("model.layers.1.") for name in read)


def test_another_weight_is_another_digest(tmp_path: Path) -> None:
    one, same, other = (
        ModelFolder(write_tiny_model(tmp_path / name, seed=seed)).digest
        for name, seed in [("one", 0), ("same", 0), ("other", 1)]
    )
    assert one == same != other


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 88', '"intermediate_size": 96'))
    with pytest.raises(InputError, match=r"decoder 0 does not fit config\.json"):
        load_layer(ModelFolder(tmp_path), 1)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path))
    with pytest.raises(InputError, match=r"model\.layers\.9\.x is missing"):
        folder.tensor("model.layers.9.x")


def test_the_head_stays_at_16_bits(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path))
    with pytest.raises(InputError, match="head at 4g32: only decoder layers"):
        load_layer(folder, folder.spec.num_layers - 1, Choice(4, 32))


def _spy_on_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    tensor = ModelFolder.tensor

    def spy(folder: ModelFolder, name: str) -> torch.Tensor:
        read.append(name)
        return tensor(folder, name)

    monkeypatch.setattr(ModelFolder, "tensor", spy)
    return read
