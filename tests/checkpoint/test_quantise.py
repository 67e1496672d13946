import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import hetero_infer.checkpoint.quantise as quantise
from hetero_infer.checkpoint.calibration import CalibratedLayer, calibrate
from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.quant.linear import QuantLinear
from hetero_infer.quant.round_to_nearest import pack_nearest, round_to_nearest
from hetero_infer.spec import UNQUANTISED, Choice, InputError
from hetero_infer.spec.gptq import GptqOptions
from tests.tiny_model import BLOOM, OPT, TINY, write_tiny_model

MIXED = (Choice(3, 32), Choice(4, 64), UNQUANTISED, Choice(8, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(write_tiny_model(tmp_path_factory.mktemp("model"), num_hidden_layers=4))


@pytest.fixture(scope="module")
def windows() -> CalibrationWindows:
    return some_windows(0)


def some_windows(seed: int) -> CalibrationWindows:
    return CalibrationWindows(torch.randint(99, (4, 32), generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def shards(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShardStore]:
    yield quantise_layers(folder, enumerate(MIXED), windows, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def layers_made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Choice]]:
    """What is quantised from now on."""
    made: list[tuple[int, Choice]] = []
    original = quantise._quantise

    def spy(layer: CalibratedLayer, choice: Choice, *rest: object) -> None:
        made.append((layer.index, choice))
        original(layer, choice, *rest)

    monkeypatch.setattr(quantise, "_quantise", spy)
    return made


@pytest.mark.parametrize(
    "family", [OPT | {"ffn_dim": 90}, BLOOM, TINY | {"model_type": "qwen2"}], ids=["opt", "bloom", "qwen2"]
)
def test_other_families_and_their_biases_are_quantised(
    family: dict[str, object], windows: CalibrationWindows, tmp_path: Path
) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path / "model", family=family))
    choices = (Choice(8, 32), Choice(8, 64), Choice(8, 128))
    shards = quantise_layers(folder, enumerate(choices), windows, tmp_path / "checkpoint")
    mixed = single_process_model(folder, choices, shards)
    plain = single_process_model(folder, choices, shards, dequantised=True)
    text = torch.arange(50)[None]
    assert torch.equal(mixed.logits(text), plain.logits(text))
    exact = single_process_model(folder).logits(text)
    assert 0 < (mixed.logits(text) - exact).norm() < 0.05 * exact.norm()


def test_a_mixed_model_equals_one_with_the_dequantised_weights(folder: ModelFolder, shards: ShardStore) -> None:
    mixed = single_process_model(folder, MIXED, shards)
    plain = single_process_model(folder, MIXED, shards, dequantised=True)
    assert sum(isinstance(part, QuantLinear) for layer in mixed.layers for part in layer.modules()) == 21
    assert not any(isinstance(part, QuantLinear) for layer in plain.layers for part in layer.modules())
    prompts = [[1, 2, 3], [5, 8], list(range(40))]
    for ours, theirs in zip(mixed.greedy_logits(prompts, 10), plain.greedy_logits(prompts, 10), strict=True):
        assert torch.equal(ours, theirs)


ENDS = {
    "llama": {"num_hidden_layers": 2},
    "llama_tied": {"num_hidden_layers": 2, "tie_word_embeddings": True},
    "opt": {"family": OPT},
    "opt_projected": {"family": OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20},
    "bloom": {"family": BLOOM},
}


@pytest.mark.parametrize("shape", ENDS)
@pytest.mark.parametrize(
    "ends", [(Choice(4, 32), Choice(8, 32)), (UNQUANTISED, Choice(3, 32)), (Choice(8, 32), UNQUANTISED)]
)
def test_quantised_ends_give_the_tokens_of_their_dequantised_weights(
    shape: str, ends: tuple[Choice, Choice], windows: CalibrationWindows, tmp_path: Path
) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path / "model", vocab_size=299, **ENDS[shape]))
    decoders = [Choice(8, 32)] * folder.spec.num_hidden_layers
    wanted = [*enumerate(decoders), ("embedding", ends[0]), ("head", ends[1])]
    shards = quantise_layers(folder, wanted, windows, tmp_path / "checkpoint")
    ours = single_process_model(folder, decoders, shards, ends=ends)
    plain = single_process_model(folder, decoders, shards, dequantised=True, ends=ends)
    assert not any(isinstance(part, QuantLinear) for layer in plain.layers for part in layer.modules())
    text = torch.arange(50)[None]
    torch.testing.assert_close(ours.logits(text), plain.logits(text), rtol=1e-4, atol=1e-5)
    prompts = [[1, 2, 3], [5, 8], list(range(40))]
    assert ours.generate_greedy(prompts, 10) == plain.generate_greedy(prompts, 10)
    assert not torch.equal(plain.logits(text), single_process_model(folder, decoders, shards).logits(text))


def test_tied_weights_are_quantised_apart(windows: CalibrationWindows, tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path / "model", tie_word_embeddings=True))
    shards = quantise_layers(folder, [("head", Choice(3, 32))], windows, tmp_path / "checkpoint")
    whole = folder.spec.num_layers
    model = single_process_model(folder, None, shards, ends=(UNQUANTISED, Choice(3, 32)))
    assert torch.equal(model.layers[0].embed_tokens.weight, load_layer(folder, 0).embed_tokens.weight)
    assert isinstance(model.layers[whole - 1].lm_head, QuantLinear)


def test_an_embedding_is_rounded_without_a_calibration_pass(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hetero_infer.checkpoint.calibration.load_layer", None)
    choice = Choice(4, 32)
    shards = quantise_layers(folder, [("embedding", choice)], windows, tmp_path)
    expected = pack_nearest(load_layer(folder, 0).embed_tokens.weight, choice)
    found = shards.read("embedding", choice)
    assert found.keys() == {f"embed_tokens.{name}" for name in expected}
    assert all(torch.equal(found[f"embed_tokens.{name}"], tensor) for name, tensor in expected.items())


def test_a_head_is_nearer_by_gptq_than_by_rounding(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path
) -> None:
    """As it counts: on the head's inputs."""
    choice, whole = Choice(3, 32), folder.spec.num_hidden_layers + 1
    shards = quantise_layers(folder, [("head", choice)], windows, tmp_path)
    *_, head = calibrate(folder, windows, whole)
    weight, hessian = head.module.lm_head.weight, head.statistics["lm_head"].hessian

    def error(other: torch.Tensor) -> float:
        moved = other - weight
        return ((moved @ hessian) * moved).sum().item()

    by_gptq = load_layer(folder, whole, choice, shards).lm_head.dequantised(torch.float32).t()
    assert 0 < error(by_gptq) < 0.9 * error(round_to_nearest(weight, choice))


def test_a_vocabulary_quantised_in_blocks_is_the_same(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [("embedding", Choice(3, 32)), ("head", Choice(3, 32))]
    whole = quantise_layers(folder, wanted, windows, tmp_path / "whole")
    monkeypatch.setattr(quantise, "ROWS_AT_ONCE", 32)
    blocks = quantise_layers(folder, wanted, windows, tmp_path / "blocks")
    for layer, choice in wanted:
        expected, found = whole.read(layer, choice), blocks.read(layer, choice)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_more_bits_lie_nearer_to_the_unquantised_model(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path
) -> None:
    choices = [Choice(bits, 32) for bits in (3, 4, 8)]
    shards = quantise_layers(folder, [(0, choice) for choice in choices], windows, tmp_path)
    text = torch.arange(50)[None]
    exact = single_process_model(folder).logits(text)
    errors = [
        (single_process_model(folder, [choice, *MIXED[2:3] * 3], shards).logits(text) - exact).norm().item()
        for choice in choices
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_a_worker_finds_its_shards_by_the_models_digest(folder: ModelFolder, shards: ShardStore) -> None:
    found = ShardStore.of_model(shards.path, folder.digest)
    assert found.recipe == shards.recipe
    expected = load_layer(folder, 1, MIXED[0], shards).state_dict()
    for name, tensor in load_layer(folder, 1, MIXED[0], found).state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_a_worker_without_a_quantised_checkpoint_is_told_so(folder: ModelFolder, shards: ShardStore) -> None:
    with pytest.raises(InputError, match="nothing there for the model 0123"):
        ShardStore.of_model(shards.path, "0123")
    with pytest.raises(InputError, match="layer 0 at 8g32 is not there; quantise it first"):
        load_layer(folder, 1, Choice(8, 32), shards)


def test_a_quantised_layer_reads_its_norms_and_its_shard_only(
    folder: ModelFolder, shards: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    tensor = ModelFolder.tensor
    monkeypatch.setattr(
        ModelFolder, "tensor", lambda folder, name, *how: read.append(name) or tensor(folder, name, *how)
    )
    load_layer(folder, 1, MIXED[0], shards)
    assert sorted(read) == [
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
    ]


def test_what_is_there_is_not_made_again(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path, layers_made: list[tuple[int, Choice]]
) -> None:
    quantise_layers(folder, [(0, MIXED[0]), (1, MIXED[1])], windows, tmp_path)
    layers_made.clear()
    quantise_layers(folder, [(0, MIXED[0]), (1, MIXED[1]), (2, MIXED[1]), (3, UNQUANTISED)], windows, tmp_path)
    assert layers_made == [(2, MIXED[1])]


def test_nothing_missing_means_no_pass_and_no_auto_gptq(
    folder: ModelFolder, windows: CalibrationWindows, shards: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "calibrate", None)
    quantise_layers(folder, enumerate(MIXED), windows, shards.path)


def test_the_pass_ends_after_the_last_layer_that_lacks_a_shard(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(
        "hetero_infer.checkpoint.calibration.load_layer",
        lambda folder, position: loaded.append(position) or load_layer(folder, position),
    )
    quantise_layers(folder, [(1, MIXED[0])], windows, tmp_path)
    assert loaded == [0, 1, 2]


def test_another_text_choice_layer_or_weight_is_another_shard(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path
) -> None:
    other_model = ModelFolder(write_tiny_model(tmp_path / "other", seed=7, num_hidden_layers=4))
    same, other_text, other_weights = (
        quantise_layers(model, [], text, tmp_path / "checkpoint")
        for model, text in [(folder, windows), (folder, some_windows(1)), (other_model, windows)]
    )
    names = [
        same.file_of(0, MIXED[0]),
        same.file_of(1, MIXED[0]),
        same.file_of(0, MIXED[1]),
        other_text.file_of(0, MIXED[0]),
        other_weights.file_of(0, MIXED[0]),
    ]
    assert len(set(names)) == len(names)


def test_the_same_inputs_make_the_same_bytes(
    folder: ModelFolder, windows: CalibrationWindows, shards: ShardStore, tmp_path: Path
) -> None:
    again = quantise_layers(folder, [(0, MIXED[0])], windows, tmp_path)
    assert again.file_of(0, MIXED[0]).read_bytes() == shards.file_of(0, MIXED[0]).read_bytes()


def test_a_kill_between_shards_keeps_the_finished_ones(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = quantise._quantise

    def killed_at_layer_1(layer: CalibratedLayer, *rest: object) -> None:
        if layer.index == 1:
            raise KeyboardInterrupt
        original(layer, *rest)

    monkeypatch.setattr(quantise, "_quantise", killed_at_layer_1)
    with pytest.raises(KeyboardInterrupt):
        quantise_layers(folder, [(0, MIXED[0]), (1, MIXED[0])], windows, tmp_path)
    assert [path.name[:13] for path in tmp_path.glob("*.safetensors")] == ["layer000-3g32"]
    with pytest.raises(InputError, match="quantise it first"):
        ShardStore.of_model(tmp_path, folder.digest)


@pytest.mark.parametrize("harm", ["truncated", "one_byte_changed", "empty", "not_ours"])
def test_a_damaged_shard_is_named(harm: str, folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path) -> None:
    shards = quantise_layers(folder, [(0, MIXED[0])], windows, tmp_path)
    path = shards.file_of(0, MIXED[0])
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes({"truncated": data[:-40], "one_byte_changed": data, "empty": b"", "not_ours": save({})}[harm])
    with pytest.raises(InputError, match=rf"{path.name}: damaged .* delete it and quantise again"):
        load_layer(folder, 1, MIXED[0], shards)


def test_the_manifest_is_made_anew_from_the_shards(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path
) -> None:
    manifest = tmp_path / "manifest.json"
    first = quantise_layers(folder, [(0, MIXED[0])], windows, tmp_path).file_of(0, MIXED[0]).name
    manifest.unlink()
    second = quantise_layers(folder, [(1, MIXED[1])], windows, tmp_path).file_of(1, MIXED[1]).name
    content = json.loads(manifest.read_text())
    assert set(content["shards"]) == {first, second}
    assert content["shards"][second]["choice"] == MIXED[1].to_json()
    assert content["shards"][second]["depends_on"]["calibration"] == windows.digest


def test_the_runtime_imports_neither_auto_gptq_nor_transformers() -> None:
    code = (
        "import sys, hetero_infer.checkpoint.local_model, hetero_infer.checkpoint.quantise\n"
        "assert not {'auto_gptq', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_was_quantised_is_told_in_lines_where_there_is_no_terminal(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [(0, MIXED[0]), (1, MIXED[1])]
    quantise_layers(folder, wanted, windows, tmp_path / "told", progress=True)
    assert capsys.readouterr().err == "quantised 2 of 2 layers, 0 s left\n"
    quantise_layers(folder, wanted, windows, tmp_path / "untold")
    assert capsys.readouterr().err == ""


def test_a_text_that_says_too_little_for_the_damping_is_told_and_used(
    folder: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight tokens for 48 and more features, and nothing to damp them with."""
    few = CalibrationWindows(torch.arange(8)[None])
    shards = quantise_layers(folder, [(0, MIXED[0]), (0, MIXED[1])], few, tmp_path, GptqOptions(damping=0))
    lines = capsys.readouterr().err.splitlines()
    assert "layer 0, self_attn.q_proj: its Hessian is singular with damping = 0; 0.01 was taken" in lines
    assert len(lines) == len(set(lines)) == 7  # of each Linear once, for both choices
    model = single_process_model(folder, [MIXED[0], *[UNQUANTISED] * 3], shards)
    assert model.logits(torch.arange(50)[None]).isfinite().all()


def test_other_options_are_other_shards(folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path) -> None:
    options = [GptqOptions(), GptqOptions(damping=0.02), GptqOptions(symmetric=True), GptqOptions(act_order=True)]
    stores = [quantise_layers(folder, [(0, MIXED[0])], windows, tmp_path, each) for each in options]
    contents = {store.file_of(0, MIXED[0]).read_bytes() for store in stores}
    assert len({store.file_of(0, MIXED[0]) for store in stores}) == len(contents) == 4
    assert ShardStore.of_model(tmp_path, folder.digest).recipe.gptq == options[-1]  # as the last step left it


def test_a_model_in_act_order_equals_one_with_the_dequantised_weights(
    folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path
) -> None:
    shards = quantise_layers(folder, enumerate(MIXED), windows, tmp_path, GptqOptions(act_order=True))
    order = shards.read(0, MIXED[0])["mlp.down_proj.g_idx"]
    assert not torch.equal(order, order.sort().values)
    mixed, plain = (single_process_model(folder, MIXED, shards, dequantised=how) for how in (False, True))
    assert torch.equal(mixed.logits(torch.arange(50)[None]), plain.logits(torch.arange(50)[None]))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda recipe: recipe.pop("gptq"), "gptq is missing"),
        (lambda recipe: recipe.update(damping=0.01), "damping is not known"),
        (lambda recipe: recipe["gptq"].pop("sequential"), "gptq: sequential is missing"),
        (lambda recipe: recipe["gptq"].update(act_order=1), "gptq: act_order = 1 is not true or false"),
        (lambda recipe: recipe["gptq"].update(damping=2), "damping = 2: a share"),
    ],
)
def test_a_recipe_that_was_edited_is_named(
    spoil: Callable[[dict], object], says: str, folder: ModelFolder, windows: CalibrationWindows, tmp_path: Path
) -> None:
    quantise_layers(folder, [], windows, tmp_path)
    (path,) = tmp_path.glob("recipe-*.json")
    recipe = json.loads(path.read_text())
    spoil(recipe)
    path.write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=f"checkpoint recipe .*{says}"):
        ShardStore.of_model(tmp_path, folder.digest)
