"""Mistakes in the model folder and in the checkpoint folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.mistakes.mistake import PLAN, Mistake, edited, removed, replaced, written

WEIGHTS = "tiny/model-00001-of-00001.safetensors"
EVALUATE = ("evaluate",)


def folder_mistakes() -> Iterator[Mistake]:
    yield Mistake("no config.json there; [model] path names", "tiny", removed("tiny/config.json"), PLAN)
    yield Mistake("nowhere: no config.json there", "nowhere", replaced("run.toml", "/tiny", "/nowhere"), EVALUATE)
    yield Mistake("no *.safetensors there", "tiny", removed(WEIGHTS), PLAN)
    yield from in_its_config()
    yield from in_its_weights()
    yield from in_its_texts()


def in_its_config() -> Iterator[Mistake]:
    def config(says: str, **fields: Any) -> Mistake:
        spoil = edited("tiny/config.json", lambda content: content.update(fields))
        return Mistake(says, next(iter(fields)), spoil, PLAN)

    yield config("model_type 'mamba': this version runs", model_type="mamba")
    yield config("rope_scaling = {'factor': 2} is not supported yet", rope_scaling={"factor": 2})
    yield config("num_hidden_layers = 0: a number above 0", num_hidden_layers=0)
    yield config("hidden_size = '48': a number above 0", hidden_size="48")
    yield config("is no multiple of num_key_value_heads = 3", num_key_value_heads=3)
    yield config("head_dim = 21: rotary embeddings need an even one", head_dim=21)
    yield config("hidden_act = 'relu', the llama family uses", hidden_act="relu")
    yield Mistake(
        "the field 'vocab_size' is missing",
        "config",
        edited("tiny/config.json", lambda content: content.pop("vocab_size")),
        PLAN,
    )


def in_its_weights() -> Iterator[Mistake]:
    def tensors(says: str, change: Callable[[dict[str, torch.Tensor]], object], command: tuple[str, ...]) -> Mistake:
        def spoil(folder: Path) -> None:
            weights = load_file(folder / WEIGHTS)
            change(weights)
            save_file(weights, folder / WEIGHTS)

        return Mistake(says, "tiny", spoil, command)

    def truncated(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])

    yield Mistake("not a whole safetensors file", "model-00001", truncated, EVALUATE)
    yield Mistake("not a whole safetensors file (", "model-00001", written(WEIGHTS, b""), EVALUATE)
    norm = "model.layers.2.input_layernorm.weight"
    yield tensors(f"the tensor {norm} is missing", lambda weights: weights.pop(norm), EVALUATE)
    yield tensors("decoder 2 does not fit config.json", lambda weights: weights.update({norm: torch.ones(7)}), EVALUATE)


def in_its_texts() -> Iterator[Mistake]:
    yield Mistake("no tokenizer.json there, so the text", "tiny", removed("tiny/tokenizer.json"), PLAN)
    yield Mistake("tokenizer.json: cannot be used", "tokenizer", written("tiny/tokenizer.json", "{}"), PLAN)
    yield Mistake("tokens and a window needs 256; give a longer text", "text.txt", written("text.txt", "Short."), PLAN)
    yield Mistake("it has 1 tokens; perplexity needs at least 2", "text.txt", written("text.txt", "a"), EVALUATE)
    yield Mistake("nothing there for the model", "checkpoint", lambda folder: None, ("evaluate", "out/checkpoint"))
