"""Held-out text decides: how much more loss a model has at the bits of a plan, on text that nothing was calibrated on.

In: model folder, text, the choice of every layer, shards. Out: nats per token. The model streams through: in memory are
one layer at a time and the hidden states of the whole text, so a model that does not fit is measured, too.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.checkpoint.text import read_tokens
from hetero_infer.models import KVCache, MicroBatch
from hetero_infer.models.micro_batch import pad_rows
from hetero_infer.spec import UNQUANTISED, Choice, HeteroInferError, InputError, Phase
from hetero_infer.spec.fields import read_fields
from hetero_infer.spec.files import digest_of, read_json, write_atomically

FORMAT = 1
WINDOW_TOKENS = 512  # or the model's context, where that is shorter
ROWS_AT_ONCE = 2048  # of the windows that one forward pass works on


@dataclass(frozen=True, eq=False)
class HeldOutText:
    """The whole text, cut into `windows` of token ids, each of which begins without a past; the last may be shorter.

    `folder` has the model, and the tokenizer that read it.
    """

    folder: ModelFolder
    path: Path
    windows: tuple[torch.Tensor, ...]

    @classmethod
    def read(cls, folder: ModelFolder, path: Path) -> "HeldOutText":
        size = min(WINDOW_TOKENS, folder.spec.max_position_embeddings)
        tokens = read_tokens(folder, path)
        if len(tokens) < size:
            raise InputError(
                f"held-out text {path}: it has {len(tokens)} tokens and a window needs {size}; name a longer one under "
                "[quality] text"
            )
        return cls(folder, path, tuple(window for window in tokens.split(size) if len(window) > 1))

    @cached_property
    def digest(self) -> str:
        return digest_of(*(window.numpy().tobytes() for window in self.windows))


def loss_increase(text: HeldOutText, choices: Sequence[Choice], shards: ShardStore, progress: bool = False) -> float:
    """Nats per token that the model loses more under the `choices` of `[embedding, decoder 0, …, head]`."""
    if not any(choice.is_quantised for choice in choices):
        return 0.0
    reference = reference_loss(text, shards.path, progress)
    return streamed_loss(text, choices, shards, progress) - reference


def reference_loss(text: HeldOutText, checkpoint: Path, progress: bool = False) -> float:
    """Of the unquantised model; measured once, and kept in the checkpoint folder."""
    folder = text.folder
    path = checkpoint / f"heldout-{digest_of(folder.digest, text.digest)}.json"
    if path.exists():
        fields = {"format": int, "model": str, "text": str, "nats_per_token": float}
        return float(read_fields(read_json(path, "loss", FORMAT), fields, f"loss {path}")["nats_per_token"])
    loss = streamed_loss(text, [UNQUANTISED] * folder.spec.num_layers, progress=progress)
    content = {"format": FORMAT, "model": folder.digest, "text": text.digest, "nats_per_token": loss}
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return loss


def streamed_loss(
    text: HeldOutText, choices: Sequence[Choice], shards: ShardStore | None = None, progress: bool = False
) -> float:
    """Nats per predicted token: all of the text but the first of each window."""
    at_once = max(1, ROWS_AT_ONCE // max(map(len, text.windows)))
    groups = [text.windows[first : first + at_once] for first in range(0, len(text.windows), at_once)]
    hidden = [pad_rows(torch.cat(group)) for group in groups]
    name = "measure" if any(choice.is_quantised for choice in choices) else "measure, unquantised"
    with tqdm(total=len(choices), desc=name, unit="layer", disable=None if progress else True) as bar:
        for position, choice in enumerate(choices[:-1]):
            _pass(text.folder, position, choice, shards, groups, hidden)
            bar.update()
        total = _summed_loss(text.folder, choices[-1], shards, groups, hidden)
        bar.update()
    if not math.isfinite(total):
        raise HeteroInferError(
            f"held-out text {text.path}: the model's loss on it is {total} at the bits of the plan; allow more bits in "
            "[quality] choices"
        )
    return total / sum(len(window) - 1 for window in text.windows)


Groups = Sequence[Sequence[torch.Tensor]]  # the windows of each forward pass


@torch.inference_mode()
def _pass(
    folder: ModelFolder,
    position: int,
    choice: Choice,
    shards: ShardStore | None,
    groups: Groups,
    hidden: list[torch.Tensor],
) -> None:
    """`hidden` through one layer, in place; the layer is gone before the next is loaded."""
    spec = folder.spec
    layer = load_layer(folder, position, choice, shards)
    indices = [position - 1] if position else []
    longest = max(map(len, itertools.chain(*groups)))
    cache = KVCache(indices, max(map(len, groups)), longest, spec.num_key_value_heads, spec.head_dim)
    for number, group in enumerate(groups):
        hidden[number] = layer(hidden[number], _prefill(group), cache)


@torch.inference_mode()
def _summed_loss(
    folder: ModelFolder, choice: Choice, shards: ShardStore | None, groups: Groups, hidden: Sequence[torch.Tensor]
) -> float:
    """One window at a time: logits of more would take more memory than all else."""
    head = load_layer(folder, folder.spec.num_layers - 1, choice, shards)
    total = 0.0
    for group, rows in zip(groups, hidden, strict=True):
        for window, span in zip(group, _prefill(group).row_ranges, strict=True):
            logits = head(pad_rows(rows[span]), _prefill([window]), None)[: len(window) - 1]
            total += cross_entropy(logits.float(), window[1:], reduction="sum").item()
    return total


def _prefill(windows: Sequence[torch.Tensor]) -> MicroBatch:
    count = len(windows)
    return MicroBatch(Phase.PREFILL, tuple(range(count)), (0,) * count, tuple(map(len, windows)))
