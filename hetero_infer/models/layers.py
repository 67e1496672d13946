"""`LayerDefinition`: what a family says about each layer of its pipeline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from hetero_infer.spec import Choice


@dataclass(frozen=True)
class LayerDefinition:
    """One layer of `[embedding, decoder 0, …, decoder L-1, head]`.

    `build(choice)` gives the module without weights; `tensors` maps each of its parameters to the tensor's name in the
    model folder; `linears` names the Linears that a choice below 16 bits replaces. Every module is called as
    `layer(hidden, batch, cache)`: `[rows, hidden_size]` to the same, except that the embedding takes token ids `[rows]`
    and the head gives logits `[rows, vocab_size]` for the rows it is given.
    """

    name: str
    build: Callable[[Choice], nn.Module]
    tensors: Mapping[str, str]
    linears: tuple[str, ...] = ()
