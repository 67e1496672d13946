"""Probes: the model's loss with some of its layers rounded to nearest, on a few windows of text.

All probes go through the layers together, one layer in memory at a time. Up to the first layer that it rounds a probe
shares its hidden states with the unquantised model, so one that rounds the last layer costs that layer and the head.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.models import KVCache, MicroBatch, layers_of
from hetero_infer.models.micro_batch import pad_rows
from hetero_infer.quant.round_to_nearest import round_to_nearest
from hetero_infer.spec import UNQUANTISED, Choice, Phase

SMALLEST_INCREASE = 1e-6  # nats per token: no choice below 16 bits is taken to be free, whatever a probe says
ROWS_AT_ONCE = 2048
SMALL_BYTES = 2**26  # of hidden states, which may be more than a small model has


@dataclass(frozen=True)
class Probe:
    """The layers at these places of `[embedding, decoder 0, …, head]` at `choice`, the others unquantised."""

    positions: tuple[int, ...]
    choice: Choice

    def at(self, position: int) -> Choice:
        return self.choice if position in self.positions else UNQUANTISED


@dataclass(frozen=True)
class Estimate:
    """A number in nats per token, and the standard error that it is known with."""

    value: float
    error: float

    @classmethod
    def of_increases(cls, increases: torch.Tensor) -> "Estimate":
        """The mean over windows. One window alone says nothing of its error: that is taken to be the whole value."""
        mean, count = increases.mean().item(), len(increases)
        error = increases.std().item() / math.sqrt(count) if count > 1 else abs(mean)
        return cls(max(mean, SMALLEST_INCREASE), error)


NO_PROBE = Probe((), UNQUANTISED)
NOTHING = Estimate(0.0, 0.0)


def measure_increases(folder: ModelFolder, probes: Sequence[Probe], windows: torch.Tensor) -> dict[Probe, Estimate]:
    """What each probe loses against the unquantised model on token ids `[windows, tokens]`: something, but at 16 bits
    nothing."""
    rounding = [probe for probe in probes if probe.choice.is_quantised]
    found = dict.fromkeys(probes, NOTHING)
    if rounding:
        unquantised, *losses = probe_losses(folder, [NO_PROBE, *rounding], windows)
        found |= {probe: Estimate.of_increases(of - unquantised) for probe, of in zip(rounding, losses, strict=True)}
    return found


@torch.no_grad()
def probe_losses(folder: ModelFolder, probes: Sequence[Probe], windows: torch.Tensor) -> torch.Tensor:
    """Nats per predicted token, float64 `[probes, windows]`.

    Held at once: a layer, and the hidden states of as many windows as take no more bytes than the model's files.
    """
    tokens = windows.shape[1]
    model_bytes = sum(file.stat().st_size for file in folder.files)
    window_bytes = len(probes) * tokens * folder.spec.hidden_size * torch.float32.itemsize
    at_once = max(1, min(ROWS_AT_ONCE // tokens, max(model_bytes, SMALL_BYTES) // window_bytes))
    parts = windows.split(at_once)
    with tqdm(total=len(parts) * folder.spec.num_layers, desc="probe", unit="layer", disable=None) as bar:
        return torch.cat([_losses_of(folder, probes, part, bar) for part in parts], 1)


def _losses_of(folder: ModelFolder, probes: Sequence[Probe], windows: torch.Tensor, bar: tqdm) -> torch.Tensor:
    spec = folder.spec
    count, tokens = windows.shape
    batch = MicroBatch(Phase.PREFILL, tuple(range(count)), (0,) * count, (tokens,) * count)
    states = [pad_rows(windows.flatten())] * len(probes)
    for position, definition in enumerate(layers_of(spec)[:-1]):
        layer = load_layer(folder, position)
        own = [position - 1] if position else []
        cache = KVCache(own, count, tokens, spec.num_key_value_heads, spec.head_dim)
        after = {}
        for choice, which in _by_choice(probes, position):
            with _rounded(layer, definition.matrices, choice):
                for state in {id(states[k]): states[k] for k in which}.values():
                    after[id(state), choice] = layer(state, batch, cache)
        states = [after[id(state), probe.at(position)] for state, probe in zip(states, probes, strict=True)]
        bar.update()
    losses = torch.empty(len(probes), count, dtype=torch.float64)
    head, definition = load_layer(folder, spec.num_layers - 1), layers_of(spec)[-1]
    for choice, which in _by_choice(probes, spec.num_layers - 1):
        with _rounded(head, definition.matrices, choice):
            for k in which:
                for window, rows in enumerate(batch.row_ranges):
                    logits = head(pad_rows(states[k][rows]), batch, cache)[: tokens - 1]
                    losses[k, window] = cross_entropy(logits, windows[window, 1:])
    bar.update()
    return losses


def _by_choice(probes: Sequence[Probe], position: int) -> Iterator[tuple[Choice, list[int]]]:
    """The probes' numbers, by what they have at this place: a layer is rounded once for all that share it."""
    which: dict[Choice, list[int]] = {}
    for k, probe in enumerate(probes):
        which.setdefault(probe.at(position), []).append(k)
    yield from which.items()


@contextmanager
def _rounded(layer: nn.Module, names: Iterable[str], choice: Choice) -> Iterator[None]:
    """The layer's matrices at `choice`, for as long as it lasts."""
    parts = [layer.get_submodule(name) for name in names] if choice.is_quantised else []
    originals = [part.weight.data for part in parts]
    for part in parts:
        part.weight.data = round_to_nearest(part.weight.data, choice)
    yield
    for part, original in zip(parts, originals, strict=True):
        part.weight.data = original
