"""The calibration pass: what the Linears of decoder layers and head see, one unquantised layer in memory at a time.

Every layer gets the inputs that the *unquantised* layers before it make, so its statistics, and the shards made from
them, do not depend on what a plan chose for other layers; or, in sequence, those that the layers before it make as
they were quantised.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.models import KVCache, MicroBatch, layers_of
from hetero_infer.models.micro_batch import pad_rows
from hetero_infer.spec import InputError, Phase
from hetero_infer.spec.model import Layer

ROWS_AT_ONCE = 2048  # of the windows that one forward pass works on


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Of the inputs x of a Linear: `hessian` = 2·E[x·xᵀ] `[in, in]` float32; mean and variance over all elements."""

    hessian: torch.Tensor
    mean: float
    variance: float


@dataclass(frozen=True, eq=False)
class CalibratedLayer:
    """A decoder layer or the head, unquantised, with the statistics of each of its Linears by name."""

    index: Layer
    module: nn.Module
    statistics: Mapping[str, InputStatistics]

    @property
    def name(self) -> str:
        return f"layer {self.index}" if isinstance(self.index, int) else self.index


def calibrate(
    folder: ModelFolder,
    windows: CalibrationWindows,
    num_layers: int,
    as_chosen: Callable[[int], nn.Module] | None = None,
) -> Iterator[CalibratedLayer]:
    """The first `num_layers` decoder layers, in order, and the head if it is one more than there are.

    `as_chosen` gives the layer at a place of the pipeline by which the layers after it are calibrated, and is asked
    when its calibrated one has been taken; without it that is the unquantised one. Held at once, if the caller lets
    go of a layer before it asks for the next: one layer and the hidden states of all windows.
    """
    spec = folder.spec
    num_windows, tokens = windows.token_ids.shape
    windows_at_once = max(1, ROWS_AT_ONCE // tokens)
    batches = [
        MicroBatch(Phase.PREFILL, tuple(range(count)), (0,) * count, (tokens,) * count)
        for first in range(0, num_windows, windows_at_once)
        for count in [min(windows_at_once, num_windows - first)]
    ]
    embedding = as_chosen(0) if as_chosen else load_layer(folder, 0)
    cache = KVCache([], 0, tokens, spec.num_key_value_heads, spec.head_dim)
    with torch.no_grad():
        hidden = [
            embedding(pad_rows(ids.flatten()), batch, cache)
            for ids, batch in zip(windows.token_ids.split(windows_at_once), batches, strict=True)
        ]
    del embedding
    for index, definition in enumerate(layers_of(spec)[1:-1][:num_layers]):
        layer = load_layer(folder, 1 + index)
        cache = KVCache([index], windows_at_once, tokens, spec.num_key_value_heads, spec.head_dim)
        watch = _InputWatch(layer, definition.matrices)
        with torch.no_grad():
            for number, batch in enumerate(batches):
                output = layer(hidden[number], batch, cache)
                watch.count(batch.live_rows)
                if not as_chosen:
                    hidden[number] = output
        watch.remove()
        calibrated = CalibratedLayer(index, layer, watch.statistics())
        _refuse_infinite(folder, calibrated)
        yield calibrated
        del layer, watch, calibrated
        if as_chosen:
            chosen = as_chosen(1 + index)
            with torch.no_grad():
                for number, batch in enumerate(batches):
                    hidden[number] = chosen(hidden[number], batch, cache)
            del chosen
    if num_layers > spec.num_hidden_layers:
        head = _calibrated_head(folder, hidden, [batch.live_rows for batch in batches])
        _refuse_infinite(folder, head)
        yield head


def _refuse_infinite(folder: ModelFolder, layer: CalibratedLayer) -> None:
    for name, statistics in layer.statistics.items():
        if not statistics.hessian.isfinite().all():
            raise InputError(
                f"model {folder.path}: {layer.name}, {name}: its inputs pass what float32 can hold on the calibration "
                "text, or are no numbers; mend the weights before it, or give another text"
            )


def _calibrated_head(folder: ModelFolder, hidden: Sequence[torch.Tensor], live_rows: Sequence[int]) -> CalibratedLayer:
    """Without its product, which nobody needs: logits of all windows would take more memory than all else."""
    head = load_layer(folder, folder.spec.num_layers - 1)
    moments = _Moments(folder.spec.embedding_size)
    with torch.no_grad():
        for rows, live in zip(hidden, live_rows, strict=True):
            moments.add(head.features(rows)[:live].float())
    return CalibratedLayer("head", head, {"lm_head": moments.statistics()})


class _InputWatch:
    """Sums x·xᵀ and x over the rows that reach the Linears of a layer; Linears fed the same tensor share a sum."""

    def __init__(self, layer: nn.Module, linears: tuple[str, ...]) -> None:
        self.inputs: dict[str, torch.Tensor] = {}
        self.sharer: dict[str, str] = {}  # the first Linear with the same input
        self.sums: dict[str, _Moments] = {}
        self.hooks = [layer.get_submodule(name).register_forward_pre_hook(self._note(name)) for name in linears]

    def _note(self, name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self.inputs[name] = args[0]

        return note

    def count(self, live_rows: int) -> None:
        """Add the inputs of the forward pass just made, without its padding rows."""
        first_with: dict[int, str] = {}
        for name, x in self.inputs.items():
            self.sharer[name] = first_with.setdefault(id(x), name)
            if self.sharer[name] == name:
                self.sums.setdefault(name, _Moments(x.shape[1])).add(x[:live_rows].float())
        self.inputs.clear()

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def statistics(self) -> dict[str, InputStatistics]:
        shared = {name: moments.statistics() for name, moments in self.sums.items()}
        return {name: shared[first] for name, first in self.sharer.items()}


class _Moments:
    def __init__(self, features: int) -> None:
        self.rows = 0
        self.total = 0.0
        self.squares = torch.zeros(features, features, dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        self.rows += len(x)
        self.total += x.sum(dtype=torch.float64).item()
        self.squares += x.t() @ x

    def statistics(self) -> InputStatistics:
        second_moments = self.squares / self.rows
        mean = self.total / (self.rows * len(second_moments))
        variance = second_moments.diagonal().mean().item() - mean**2
        return InputStatistics((2 * second_moments).float(), mean, variance)
