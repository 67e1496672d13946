"""A plan's model as a Hugging Face folder in the GPTQ convention, for other engines.

In: model folder, choices, shards. Out: `config.json` and `quantize_config.json` with what was quantised and how, a
safetensors file for each layer of the pipeline with an index, the tokenizer's files, and a `README.md` that says which
engines read it. Held at once: one layer, and the bytes of its file. All is written in a folder beside, `config.json`
last, which gets its name when it is whole.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from hetero_infer.checkpoint.export_readme import GroupFacts, readme
from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.local_model import dequantise
from hetero_infer.checkpoint.model_folder import INDEX, ModelFolder
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.models import layers_of
from hetero_infer.quant.linear import QuantLinear
from hetero_infer.spec import UNQUANTISED, Choice, InputError
from hetero_infer.spec.families.gptq import quantization_config
from hetero_infer.spec.files import read_text, write_atomically, writing
from hetero_infer.spec.model import TOKENIZER_FILES

DTYPE = torch.float16  # of everything that is not packed
PACKED_TOGETHER = 32  # inputs and outputs; other engines have no padding
COPIED = (
    *TOKENIZER_FILES,
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
)


def export_model(folder: ModelFolder, choices: Sequence[Choice], shards: ShardStore | None, directory: Path) -> str:
    """Of `[embedding, decoder 0, …, decoder L-1, head]` at these `choices`; gives what its `README.md` says."""
    embedding, *decoders, head = choices
    _refuse_other_shapes(folder, decoders)
    is_tied = folder.spec.tie_word_embeddings and embedding == head == UNQUANTISED
    # A tied head is written, too: auto-gptq's loader takes whatever memory held in place of one that is not there.
    definitions = layers_of(replace(folder.spec, tie_word_embeddings=False))
    groups = _Groups(max(linear.in_features for linear in folder.spec.linears.values()))
    with _written_beside(directory) as beside:
        file_of: dict[str, str] = {}
        num_bytes = 0
        for position, (definition, choice) in enumerate(zip(definitions, choices, strict=True)):
            file = f"model-{position + 1:05}-of-{len(choices):05}.safetensors"
            layer = load_layer(folder, position, choice, shards, DTYPE)
            if position in (0, len(choices) - 1):
                dequantise(layer, DTYPE)
            groups.look_at(layer)
            tensors = {definition.tensor(name): tensor.contiguous() for name, tensor in layer.state_dict().items()}
            write_atomically(beside / file, save(tensors, {"format": "pt"}))
            file_of |= dict.fromkeys(tensors, file)
            num_bytes += sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": num_bytes}, "weight_map": file_of}
        write_atomically(beside / INDEX, _json(index))
        for name in COPIED:
            if (folder.path / name).is_file():
                write_atomically(beside / name, (folder.path / name).read_bytes())
        config = json.loads(read_text(folder.path / "config.json", "model config"))
        config.pop("quantization_config", None)
        config |= {"torch_dtype": "float16", "tie_word_embeddings": is_tied}
        if any(choice.is_quantised for choice in decoders):
            said = quantization_config(
                folder.spec,
                decoders,
                reads_g_idx=groups.facts.act_order or groups.facts.has_parts,
                symmetric=groups.facts.symmetric,
            )
            config["quantization_config"] = said
            write_atomically(beside / "quantize_config.json", _json(said))
        text = readme(folder.path.name, choices, is_tied, groups.facts)
        write_atomically(beside / "README.md", text)
        write_atomically(beside / "config.json", _json(config))
    return text


class _Groups:
    """Looks through the layers for what must be said of all of them together."""

    def __init__(self, most_inputs: int) -> None:
        self.most_inputs = most_inputs  # of a Linear; wider groups are one over all inputs, always whole
        self.facts = GroupFacts(act_order=False, has_parts=False, symmetric=True, count=0, at_zero=0)

    def look_at(self, layer: nn.Module) -> None:
        for linear in layer.modules():
            if isinstance(linear, QuantLinear):
                facts, zeros, size = self.facts, linear.zero_points(), linear.choice.group_size
                in_order = torch.arange(linear.in_features, dtype=torch.int32) // size
                self.facts = GroupFacts(
                    act_order=facts.act_order or not torch.equal(linear.g_idx, in_order),
                    has_parts=facts.has_parts or bool(size < self.most_inputs and linear.in_features % size),
                    symmetric=facts.symmetric and bool((zeros == 2 ** (linear.choice.bits - 1)).all()),
                    count=facts.count + zeros.numel(),
                    at_zero=facts.at_zero + int((zeros == 0).sum()),
                )


def _refuse_other_shapes(folder: ModelFolder, decoders: Sequence[Choice]) -> None:
    if any(choice.is_quantised for choice in decoders):
        for name, linear in folder.spec.linears.items():
            if linear.in_features % PACKED_TOGETHER or linear.out_features % PACKED_TOGETHER:
                raise InputError(
                    f"model {folder.path}: {name} is {linear.out_features} x {linear.in_features}, and other engines "
                    f"pack multiples of {PACKED_TOGETHER} only; it can run here, but not be exported"
                )


@contextlib.contextmanager
def _written_beside(directory: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `directory` at the end; what a kill left of an earlier one is cleared."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"export {directory}: something is there; name a new folder, or move it away")
    beside = directory.absolute().parent / f".{directory.absolute().name}.part"
    with writing(directory):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    try:
        yield beside
        with writing(directory):
            os.replace(beside, directory)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
