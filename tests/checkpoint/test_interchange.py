"""Checkpoints that others made, and what others make of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hetero_infer.checkpoint.export import export_model
from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.local_model import LocalModel, single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.models import layers_of
from hetero_infer.quant.linear import pack_linear
from hetero_infer.spec import UNQUANTISED, Choice, InputError
from tests.checkpoint import auto_gptq_model
from tests.greedy import assert_same_greedy_tokens
from tests.tiny_model import BLOOM, OPT, TINY, write_tiny_model

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 3}
WINDOWS = CalibrationWindows(torch.randint(99, (4, 32), generator=torch.Generator().manual_seed(0)))
PROMPTS = [[1, 2, 3], [5, 8], list(range(40))]
PLAIN = (UNQUANTISED, UNQUANTISED)
LARGEST_DIFFERENCE = 5e-5  # of logits near 10, in float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("model")
    return ModelFolder(write_tiny_model(path, dtype=torch.float16, **SHAPE))


def exported(
    folder: ModelFolder, choices: tuple[Choice, ...], to: Path, ends: tuple[Choice, Choice] = PLAIN
) -> tuple[LocalModel, ShardStore]:
    """In `to`; gives the model that was exported."""
    wanted = [*enumerate(choices), ("embedding", ends[0]), ("head", ends[1])]
    shards = quantise_layers(folder, wanted, WINDOWS, to.parent / "checkpoint")
    export_model(folder, (ends[0], *choices, ends[1]), shards, to)
    return single_process_model(folder, choices, shards, ends=ends), shards


def largest_difference(ours: LocalModel, theirs: torch.nn.Module) -> float:
    text = torch.arange(60)[None]
    with torch.no_grad():
        return (ours.logits(text) - theirs(text).logits).abs().max().item()


# Of 64 and 96 inputs: whole groups, one group, a part of a group at the end.
@pytest.mark.parametrize("choice", [Choice(4, 32), Choice(8, 32), Choice(3, 32), Choice(4, 96), Choice(4, 64)], ids=str)
def test_auto_gptq_computes_the_logits_of_an_export_at_uniform_bits(
    folder: ModelFolder, choice: Choice, tmp_path: Path
) -> None:
    ours, _ = exported(folder, (choice,) * 3, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "quantize_config.json").read_text())["sym"] is False
    theirs = auto_gptq_model.read(tmp_path / "hf")
    assert isinstance(theirs.model.layers[0].mlp.up_proj, auto_gptq_model.LINEARS)
    assert largest_difference(ours, theirs) < LARGEST_DIFFERENCE


def test_a_symmetric_export_says_so_and_auto_gptq_computes_its_logits(folder: ModelFolder, tmp_path: Path) -> None:
    choice = Choice(4, 32)
    _, shards = exported(folder, (choice,) * 3, tmp_path / "asymmetric")
    for layer in range(3):
        shards.write(layer, choice, symmetric_layer(folder, layer, choice))
    text = export_model(folder, (UNQUANTISED, *(choice,) * 3, UNQUANTISED), shards, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["quantization_config"]["sym"] is True
    assert "| vLLM | yes |" in text
    ours = single_process_model(folder, (choice,) * 3, shards)
    assert largest_difference(ours, auto_gptq_model.read(tmp_path / "hf")) < LARGEST_DIFFERENCE


def symmetric_layer(folder: ModelFolder, layer: int, choice: Choice) -> dict[str, torch.Tensor]:
    module, tensors = load_layer(folder, 1 + layer), {}
    for name in layers_of(folder.spec)[1 + layer].matrices:
        weight = module.get_submodule(name).weight
        scales = weight.unflatten(1, (-1, choice.group_size)).abs().amax(-1) / 7
        groups = torch.arange(weight.shape[1]) // choice.group_size
        packed = pack_linear(weight, scales, torch.full_like(scales, 8), groups, choice.bits)
        tensors |= {f"{name}.{buffer}": tensor for buffer, tensor in packed.items()}
    return tensors


MIXED = (Choice(3, 32), UNQUANTISED, Choice(8, 64))


@pytest.mark.parametrize("family", [TINY, OPT, BLOOM], ids=["llama", "opt", "bloom"])
def test_a_mixed_export_comes_back_as_the_model_it_was(family: dict[str, object], tmp_path: Path) -> None:
    shape = SHAPE | {"ffn_dim": 96} if family is not BLOOM else {"hidden_size": 64}
    folder = ModelFolder(write_tiny_model(tmp_path / "model", dtype=torch.float16, family=family, **shape))
    ours, _ = exported(folder, MIXED, tmp_path / "hf")
    back = ModelFolder(tmp_path / "hf")
    assert back.spec.stored_choices == MIXED
    again = single_process_model(back)
    for before, after in zip(ours.greedy_logits(PROMPTS, 10), again.greedy_logits(PROMPTS, 10), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("ends", [PLAIN, (Choice(8, 32), UNQUANTISED), (UNQUANTISED, Choice(4, 32))])
def test_quantised_ends_are_exported_dequantised_and_said(
    ends: tuple[Choice, Choice], is_tied: bool, tmp_path: Path
) -> None:
    path = write_tiny_model(tmp_path / "model", dtype=torch.float16, tie_word_embeddings=is_tied, **SHAPE)
    ours, _ = exported(ModelFolder(path), (Choice(4, 32),) * 3, tmp_path / "hf", ends)
    back = ModelFolder(tmp_path / "hf")
    assert back.spec.tie_word_embeddings == (is_tied and ends == PLAIN)
    assert ("dequantised" in (tmp_path / "hf" / "README.md").read_text()) == (ends != PLAIN)
    theirs = auto_gptq_model.read(tmp_path / "hf")
    assert largest_difference(single_process_model(back), theirs) < LARGEST_DIFFERENCE
    assert largest_difference(ours, theirs) < (LARGEST_DIFFERENCE if ends == PLAIN else 0.02)  # rounded to float16


def test_an_export_has_the_tokenizer_and_no_other_file_of_the_model(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model", dtype=torch.float16, with_tokenizer=True, **SHAPE)
    (path / "calibration.txt").write_text("A text.")
    exported(ModelFolder(path), (Choice(4, 32),) * 3, tmp_path / "hf")
    names = {file.name for file in (tmp_path / "hf").iterdir() if file.suffix != ".safetensors"}
    assert names == {
        "README.md", "config.json", "model.safetensors.index.json", "quantize_config.json", "tokenizer.json"
    }  # fmt: skip


def test_a_plan_without_quantised_layers_is_exported_as_an_unquantised_model(
    folder: ModelFolder, tmp_path: Path
) -> None:
    ours, _ = exported(folder, (UNQUANTISED,) * 3, tmp_path / "hf")
    back = ModelFolder(tmp_path / "hf")
    assert back.spec == folder.spec
    assert not (tmp_path / "hf" / "quantize_config.json").exists()
    text = torch.arange(60)[None]
    assert torch.equal(single_process_model(back).logits(text), ours.logits(text))


def test_an_export_is_written_layer_by_layer(folder: ModelFolder, tmp_path: Path) -> None:
    exported(folder, (Choice(4, 32),) * 3, tmp_path / "hf")
    files = [load_file(file) for file in sorted((tmp_path / "hf").glob("*.safetensors"))]
    blocks = [{name.removeprefix("model.layers.").split(".")[0] for name in file} for file in files]
    assert blocks == [{"model"}, {"0"}, {"1"}, {"2"}, {"model", "lm_head"}]
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == set().union(*files)


KILLED = """
import os, sys
from pathlib import Path
import hetero_infer.checkpoint.export as export
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec import UNQUANTISED

written = []
original = export.write_atomically

def write(path, content):
    if len(written) == int(sys.argv[3]):
        os._exit(9)
    written.append(path.name)
    original(path, content)

export.write_atomically = write
export.export_model(ModelFolder(Path(sys.argv[1])), (UNQUANTISED,) * 5, None, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("files", [0, 3, 7])
def test_a_killed_export_leaves_nothing_that_looks_whole_and_the_next_one_clears_it(
    folder: ModelFolder, files: int, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", KILLED, str(folder.path), str(tmp_path / "hf"), str(files)]
    assert subprocess.run(arguments, env=os.environ, timeout=120).returncode == 9
    assert not (tmp_path / "hf").exists()
    assert not list(tmp_path.rglob("config.json"))
    exported(folder, (UNQUANTISED,) * 3, tmp_path / "hf")
    assert {file.name for file in tmp_path.iterdir()} == {"hf", "checkpoint"}


def test_an_export_that_fails_leaves_no_folder(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hetero_infer.checkpoint.export.readme", full_disk)
    with pytest.raises(OSError, match="No space left"):
        exported(folder, (UNQUANTISED,) * 3, tmp_path / "hf")
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint"}


def test_an_export_goes_over_nothing_that_is_there(folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "thesis.txt").write_text("…")
    with pytest.raises(InputError, match=r"hf: something is there; name a new folder"):
        exported(folder, (UNQUANTISED,) * 3, tmp_path / "hf")


def test_shapes_that_others_cannot_pack_are_refused(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path / "model", **SHAPE | {"intermediate_size": 88}))
    with pytest.raises(InputError, match=r"mlp.gate_proj is 88 x 64, and other engines pack multiples of 32 only"):
        exported(folder, (Choice(4, 32),) * 3, tmp_path / "hf")


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True], ids=["in_order", "act_order"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_an_imported_checkpoint_gives_its_makers_tokens(
    folder: ModelFolder, bits: int, act_order: bool, symmetric: bool, tmp_path: Path
) -> None:
    made = {"bits": bits, "group_size": 32, "act_order": act_order, "symmetric": symmetric}
    maker = auto_gptq_model.make(folder.path, tmp_path / "gptq", **made)
    imported = ModelFolder(tmp_path / "gptq")
    assert imported.spec.stored_choices == (Choice(bits, 32),) * 3
    ours = single_process_model(imported)
    assert largest_difference(ours, maker) < LARGEST_DIFFERENCE
    assert_same_greedy_tokens(ours.generate_greedy(PROMPTS, 20), maker, PROMPTS)


def test_one_group_over_all_inputs_is_imported_and_exported_again(folder: ModelFolder, tmp_path: Path) -> None:
    made = {"bits": 4, "group_size": -1, "act_order": False, "symmetric": True}
    maker = auto_gptq_model.make(folder.path, tmp_path / "gptq", **made)
    imported = ModelFolder(tmp_path / "gptq")
    assert imported.spec.stored_choices == (Choice(4, 96),) * 3
    export_model(imported, (UNQUANTISED, *imported.spec.stored_choices, UNQUANTISED), None, tmp_path / "hf")
    assert largest_difference(single_process_model(ModelFolder(tmp_path / "hf")), maker) < LARGEST_DIFFERENCE
    said = [json.loads((tmp_path / name / "quantize_config.json").read_text()) for name in ("gptq", "hf")]
    assert [each["group_size"] for each in said] == [-1, -1]


def test_a_checkpoint_that_only_quantize_config_tells_of_is_imported(folder: ModelFolder, tmp_path: Path) -> None:
    made = {"bits": 4, "group_size": 32, "act_order": False, "symmetric": True}
    auto_gptq_model.make(folder.path, tmp_path / "gptq", **made)
    (tmp_path / "gptq" / "config.json").write_text((folder.path / "config.json").read_text())
    assert ModelFolder(tmp_path / "gptq").spec.stored_choices == (Choice(4, 32),) * 3


def test_a_layer_of_an_imported_checkpoint_has_no_other_choice(folder: ModelFolder, tmp_path: Path) -> None:
    exported(folder, MIXED, tmp_path / "hf")
    back = ModelFolder(tmp_path / "hf")
    with pytest.raises(InputError, match=r"decoder layer 2 at 4g64: the model is quantised already and has it at 8g64"):
        load_layer(back, 3, Choice(4, 64))
    with pytest.raises(InputError, match=r"head at 8g64: the model is quantised already and has it at 16"):
        load_layer(back, 4, Choice(8, 64))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda name, tensor: tensor + 7 if name.endswith("g_idx") else tensor,
            "names groups that are not among the 2",
        ),
        (lambda name, tensor: tensor.float() if name.endswith("qweight") else tensor, "torch.float32, not torch.int32"),
        (lambda name, tensor: tensor[:-1] if name.endswith("scales") else tensor, "does not fit config.json"),
        (lambda name, tensor: tensor * float("nan") if name.endswith("scales") else tensor, "NaN or infinite values"),
    ],
    ids=["groups", "type", "shape", "nan"],
)
def test_a_damaged_tensor_of_an_imported_checkpoint_is_named(
    change, says: str, folder: ModelFolder, tmp_path: Path
) -> None:
    exported(folder, MIXED, tmp_path / "hf")
    file = tmp_path / "hf" / "model-00002-of-00005.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    with pytest.raises(InputError, match=says):
        single_process_model(ModelFolder(tmp_path / "hf"))
