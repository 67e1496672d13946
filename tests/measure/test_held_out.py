"""The loss of a held-out text with one layer in memory at a time: the same as with all of them, and measured once."""

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure import held_out
from hetero_infer.measure.held_out import HeldOutText, loss_increase, reference_loss, streamed_loss
from hetero_infer.measure.perplexity import measure_perplexity
from hetero_infer.spec import UNQUANTISED, Choice, HeteroInferError, InputError
from hetero_infer.spec.config import DEMO_MODEL
from tests.tiny_model import BLOOM, OPT, TINY, write_tiny_model

FAMILIES = {"llama": TINY, "opt": OPT, "bloom": BLOOM}
CHOICES = (Choice(8, 32), Choice(3, 32), UNQUANTISED, Choice(4, 32), Choice(8, 64))


class Prepared:
    """A tiny model, half a book page that fills some windows and a part of one, and shards of `CHOICES`."""

    def __init__(self, path: Path, family: dict[str, object] = TINY) -> None:
        # BLOOM's config says no longest context.
        context = {} if family is BLOOM else {"max_position_embeddings": 160}
        self.folder = ModelFolder(write_tiny_model(path / "model", with_tokenizer=True, family=family, **context))
        self.path = path / "heldout.txt"
        self.path.write_text((DEMO_MODEL / "heldout.txt").read_text()[:6000])
        self.text = HeldOutText.read(self.folder, self.path)
        self.checkpoint = path / "checkpoint"

    def quantise(self) -> ShardStore:
        windows = CalibrationWindows.from_text(self.folder, DEMO_MODEL / "calibration.txt", 2, 64)
        wanted = [(self.folder.spec.layer_at(position), choice) for position, choice in enumerate(CHOICES)]
        return quantise_layers(self.folder, wanted, windows, self.checkpoint)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_with_the_perplexity_of_the_whole_model(family: str, tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, FAMILIES[family])
    folder, shards = prepared.folder, prepared.quantise()
    assert len({len(window) for window in prepared.text.windows}) == 2, "the last window is a shorter one"
    for choices in ([UNQUANTISED] * 5, CHOICES):
        model = single_process_model(folder, choices[1:-1], shards, ends=(choices[0], choices[-1]))
        expected = measure_perplexity(model, folder, prepared.path).nats_per_token
        assert streamed_loss(prepared.text, choices, shards) == pytest.approx(expected, rel=1e-5)


def test_one_layer_is_in_memory_at_a_time(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[nn.Module]] = []

    def load(*arguments: Any) -> nn.Module:
        gc.collect()
        assert not any(layer() for layer in loaded)
        layer = load_layer(*arguments)
        loaded.append(weakref.ref(layer))
        return layer

    load_layer = held_out.load_layer
    monkeypatch.setattr(held_out, "load_layer", load)
    streamed_loss(prepared.text, [UNQUANTISED] * 5)
    assert len(loaded) == 5


def test_the_unquantised_model_is_measured_once(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = prepared.quantise()
    increase = loss_increase(prepared.text, CHOICES, shards)
    measured = streamed_loss(prepared.text, [UNQUANTISED] * 5)
    assert increase == pytest.approx(streamed_loss(prepared.text, CHOICES, shards) - measured)
    monkeypatch.setattr(held_out, "streamed_loss", lambda *_, **__: pytest.fail("measured again"))
    assert reference_loss(prepared.text, prepared.checkpoint) == measured
    prepared.path.write_text(prepared.path.read_text() + " And so on.")
    with pytest.raises(pytest.fail.Exception):
        reference_loss(HeldOutText.read(prepared.folder, prepared.path), prepared.checkpoint)


def test_a_model_without_a_quantised_layer_loses_nothing_and_is_not_measured(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "streamed_loss", lambda *_, **__: pytest.fail("measured"))
    nothing = ShardStore(prepared.checkpoint, prepared.quantise().recipe)
    assert loss_increase(prepared.text, [UNQUANTISED] * 5, nothing) == 0


def test_a_loss_on_disk_that_was_cut_off_is_told(prepared: Prepared) -> None:
    reference_loss(prepared.text, prepared.checkpoint)
    (path,) = prepared.checkpoint.glob("heldout-*.json")
    path.write_text(json.dumps({"format": 1, "model": "a", "text": "b"}))
    with pytest.raises(InputError, match="nats_per_token is missing"):
        reference_loss(prepared.text, prepared.checkpoint)


def test_a_loss_that_is_no_number_is_refused(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "cross_entropy", lambda logits, *_, **__: logits.sum() * math.nan)
    with pytest.raises(HeteroInferError, match=r"heldout.txt: the model's loss on it is nan"):
        streamed_loss(prepared.text, [UNQUANTISED] * 5)


def test_a_text_shorter_than_a_window_is_refused(prepared: Prepared) -> None:
    prepared.path.write_text("Short.")
    with pytest.raises(InputError, match=r"held-out text .* tokens and a window needs 160; name a longer one"):
        HeldOutText.read(prepared.folder, prepared.path)
