from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec import InputError
from tests.tiny_model import BLOOM, write_tiny_model


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


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, num_files=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"names model-00002-of-00003\.safetensors, which is not there"):
        ModelFolder(tmp_path)


def test_files_that_the_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    """Such as a second copy of all weights beside the shards."""
    folder = ModelFolder(write_tiny_model(tmp_path, num_files=2))
    (tmp_path / "consolidated.safetensors").write_bytes(b"not read")
    assert ModelFolder(tmp_path).files == folder.files
    assert ModelFolder(tmp_path).digest == folder.digest


def test_a_checkpoint_of_the_bare_model_has_names_without_the_first_component(tmp_path: Path) -> None:
    whole = ModelFolder(write_tiny_model(tmp_path / "whole", family=BLOOM))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    tensors = {name.partition(".")[2]: whole.tensor(name) for name in whole._file_of}
    save_file(tensors, bare / "model.safetensors")
    text = torch.arange(20)[None]
    assert torch.equal(single_process_model(ModelFolder(bare)).logits(text), single_process_model(whole).logits(text))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(value: float, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    file = tmp_path / "model-00001-of-00001.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite values"):
        single_process_model(ModelFolder(tmp_path))


def test_a_weight_too_large_for_the_device_s_type_is_named(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path))
    file = folder.files[0]
    save_file(load_file(file) | {"model.norm.weight": torch.full((48,), 1e6)}, file)
    with pytest.raises(InputError, match=r"model\.norm\.weight has NaN or infinite values as torch\.float16"):
        ModelFolder(tmp_path).tensor("model.norm.weight", torch.float16)


def test_a_single_number_is_no_weight(tmp_path: Path) -> None:
    file = ModelFolder(write_tiny_model(tmp_path)).files[0]
    save_file(load_file(file) | {"model.norm.weight": torch.tensor(1.0)}, file)
    with pytest.raises(InputError, match=r"the tensor model\.norm\.weight is a single number"):
        ModelFolder(tmp_path).tensor("model.norm.weight")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = ModelFolder(write_tiny_model(tmp_path)).files[0]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{file.name}: not a whole safetensors file"):
        single_process_model(ModelFolder(tmp_path))


def test_only_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    file = ModelFolder(write_tiny_model(tmp_path)).files[0]
    file.unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"convert pytorch_model\.bin with save_pretrained"):
        ModelFolder(tmp_path)


def _spy_on_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    tensor = ModelFolder.tensor

    def spy(folder: ModelFolder, name: str, *how: object) -> torch.Tensor:
        read.append(name)
        return tensor(folder, name, *how)

    monkeypatch.setattr(ModelFolder, "tensor", spy)
    return read
