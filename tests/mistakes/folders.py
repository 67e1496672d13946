"""Mistakes in the model folder and in the checkpoint folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.mistakes.mistake import PLAN, Mistake, both, edited, removed, replaced, written

INDEX = "tiny/model.safetensors.index.json"
WEIGHTS = "tiny/model-00001-of-00001.safetensors"
EVALUATE = ("evaluate",)


def folder_mistakes() -> Iterator[Mistake]:
    yield Mistake("no config.json there; [model] path names", "tiny", removed("tiny/config.json"), PLAN)
    yield Mistake("nowhere: no config.json there", "nowhere", replaced("run.toml", "/tiny", "/nowhere"), EVALUATE)
    yield Mistake("model-00001-of-00001.safetensors, which is not there", "tiny", removed(WEIGHTS), PLAN)
    yield Mistake("no *.safetensors there", "tiny", both(removed(WEIGHTS), removed(INDEX)), PLAN)
    pickled = both(removed(WEIGHTS), removed(INDEX), written("tiny/pytorch_model.bin", b""))
    yield Mistake("convert pytorch_model.bin with save_pretrained", "tiny", pickled, PLAN)
    yield Mistake("it has no weight_map from tensors to files", "index.json", written(INDEX, "{}"), PLAN)
    yield Mistake("files (KeyError", "index.json", edited(INDEX, lambda index: index.pop("weight_map")), PLAN)
    yield Mistake("names files outside", "index.json", written(INDEX, '{"weight_map": {"x": "../y"}}'), PLAN)
    yield from in_its_config()
    yield from in_its_weights()
    yield from in_its_texts()


def in_its_config() -> Iterator[Mistake]:
    def config(says: str, **fields: Any) -> Mistake:
        spoil = edited("tiny/config.json", lambda content: content.update(fields))
        return Mistake(says, next(iter(fields)), spoil, PLAN)

    yield config("model_type = 'mamba': this version runs llama", model_type="mamba")
    yield config("model_type = 'lama': this version runs", model_type="lama")
    yield config("model_type = None: this version runs", model_type=None)
    yield config("rope_scaling = {'rope_type': 'dynamic'}: of the rope types", rope_scaling={"rope_type": "dynamic"})
    yield config("num_hidden_layers = 0: a whole number from 1 to", num_hidden_layers=0)
    yield config("num_hidden_layers = 5000: at most 4096", num_hidden_layers=5000)
    yield config("hidden_size = 9223372036854775808: a whole number from 1 to", hidden_size=2**63)
    yield config("rms_norm_eps = 1000000000000000000000000000000: a number above 0", rms_norm_eps=10**30)
    yield config("rope_theta = 1.0: a number above 1", rope_theta=1.0, rope_scaling={"rope_type": "yarn", "factor": 2})
    yield config("hidden_act = {}: this version computes", hidden_act={})
    yield config("layer_types = [['a']]: 4 entries", layer_types=[["a"]], model_type="qwen3", use_sliding_window=True)
    yield config("hidden_size = '48': a whole number", hidden_size="48")
    yield config("num_attention_heads = 4.5: a whole number", num_attention_heads=4.5)
    yield config("rms_norm_eps = inf: a number above 0", rms_norm_eps=float("inf"))
    yield config("is no multiple of num_key_value_heads = 3", num_key_value_heads=3)
    yield config("head_dim = 21: rotary embeddings need an even one", head_dim=21)
    yield config("hidden_act = 'relu6': ", hidden_act="relu6")
    yield config("tie_word_embeddings = 'no': true or false", tie_word_embeddings="no")
    yield config("quant_method = None: this version reads 'gptq' only", quantization_config={"bits": 4})
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    yield config("quant_method = 'awq': this version", quantization_config=gptq | {"quant_method": "awq"})
    yield config("bits = 2: choose from 3, 4, 8, 16", quantization_config=gptq | {"bits": 2})
    yield config("lm_head = True: a quantised head is not read", quantization_config=gptq | {"lm_head": True})
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
    stem = "model.layers.1.mlp.up_proj.weight"
    for bad, command in ((float("nan"), EVALUATE), (float("inf"), ("sensitivity",)), (float("-inf"), PLAN)):
        yield tensors(
            f"the tensor {stem} has NaN or infinite values as torch.float32",
            lambda weights, bad=bad: weights[stem][3].__setitem__(5, bad),
            command,
        )
    yield tensors(
        "layer 1, mlp.down_proj: its inputs pass what float32 can hold on the calibration text",
        lambda weights: weights[stem].mul_(1e25),
        ("sensitivity",),
    )
    yield tensors(
        "is torch.int64, not floating point", lambda weights: weights.update({norm: torch.ones(48).long()}), EVALUATE
    )
    yield tensors("decoder 2 does not fit config.json", lambda weights: weights.update({norm: torch.ones(7)}), EVALUATE)


def in_its_texts() -> Iterator[Mistake]:
    yield Mistake(
        "text.txt, and the model has 101; put the tokenizer there",
        "tokenizer gives the id",
        edited("tiny/config.json", lambda config: config.update(vocab_size=101)),
        ("sensitivity",),
    )
    yield Mistake("no tokenizer there, so the text", "tiny", removed("tiny/tokenizer.json"), PLAN)
    yield Mistake("its tokenizer cannot be loaded (", "tiny", written("tiny/tokenizer.json", "{}"), PLAN)
    yield Mistake("tokens and a window needs 256; give a longer text", "text.txt", written("text.txt", "Short."), PLAN)
    yield Mistake("it has 0 tokens and a window needs 256", "text.txt", written("text.txt", ""), PLAN)
    in_lines = replaced("run.toml", "text.txt", "text.jsonl")
    for lines, says in [
        ('{"text": "Good."}\nBad.\n', "line 2: not JSON (Expecting value"),
        ('{"txt": "Bad."}\n', "line 1: text is missing"),
        ("\n", "it has 0 tokens and a window needs 256"),
    ]:
        yield Mistake(says, "text.jsonl", both(in_lines, written("text.jsonl", lines)), PLAN)
    yield Mistake("it has 1 tokens; perplexity needs at least 2", "text.txt", written("text.txt", "a"), EVALUATE)
    yield Mistake("it has 0 tokens; perplexity needs at least 2", "text.txt", written("text.txt", ""), EVALUATE)
    yield from in_an_evaluation()
    yield Mistake("nothing there for the model", "checkpoint", lambda folder: None, ("evaluate", "out/checkpoint"))


def in_an_evaluation() -> Iterator[Mistake]:
    def asked(says: str, *flags: str) -> Mistake:
        return Mistake(says, flags[-1], lambda folder: None, (*EVALUATE, *flags))

    yield asked("a context of 1 tokens: it must be from 2 to 256", "--context", "1")
    yield asked("a context of 257 tokens: it must be from 2 to 256", "--context", "257")
    yield asked("a stride of 0 tokens: it must be from 1 to 64", "--context", "64", "--stride", "0")
    yield asked("a stride of 65 tokens: it must be from 1 to 64", "--context", "64", "--stride", "65")
    prompts = (*EVALUATE, "--agreement", "prompts.jsonl")
    yield Mistake("there are none", "prompts.jsonl", written("prompts.jsonl", "\n"), prompts)
    yield Mistake("line 1: not JSON (", "prompts.jsonl", written("prompts.jsonl", "{\n"), prompts)
    yield Mistake(
        "it is empty, and prompts are cut",
        "prompts.txt",
        written("prompts.txt", ""),
        (*EVALUATE, "--agreement", "prompts.txt"),
    )
