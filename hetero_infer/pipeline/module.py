"""`PlannedPipelineModule`: DeepSpeed's `PipelineModule` with the partition that a plan says."""

import contextlib
import io
from collections.abc import Callable, Sequence

import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from torch import nn

from hetero_infer.models import KVCache, MicroBatch
from hetero_infer.models.micro_batch import pad_rows


class PlannedLayer(LayerSpec):
    """A layer that is loaded when, and only where, its stage is built."""

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        super().__init__(nn.Module)
        self.load = load

    def build(self, log: bool = False) -> nn.Module:
        return self.load()


class PlannedPipelineModule(PipelineModule):
    """Stage `j` runs the layers `bounds[j]` to `bounds[j + 1]` of `[embedding, decoder…, head]`."""

    def __init__(self, layers: Sequence[PlannedLayer], bounds: Sequence[int]) -> None:
        assert bounds[0] == 0 and bounds[-1] == len(layers), bounds
        self.bounds = list(bounds)
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its seeds and its topology
            super().__init__(layers, num_stages=len(bounds) - 1)
        self.requires_grad_(False)

    def _partition_layers(self, method: str = "plan") -> None:
        self.parts = self.bounds
        self._set_bounds(self.bounds[self.stage_id], self.bounds[self.stage_id + 1])

    def forward(self, rows: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        """Of this stage, but for the head: `[live_rows, …]` to `[live_rows, hidden_size]`."""
        hidden = pad_rows(rows)
        for layer in self.forward_funcs[: self._num_layers - 1 - self._local_start]:
            hidden = layer(hidden, batch, cache)
        return hidden[: batch.live_rows]

    def logits(self, hidden: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        """Of the last stage: some rows of `forward`'s, to `[rows, vocab_size]`."""
        return self.forward_funcs[-1](pad_rows(hidden), batch, cache)[: len(hidden)]
