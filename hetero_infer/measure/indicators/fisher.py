"""The output error of `hessian.py`, each output weighted by what the loss makes of it: `½·tr(G · ΔW · A · ΔWᵀ)`.

A = E[x·xᵀ] of a Linear's inputs and G = E[g·gᵀ] of the loss's gradients at its outputs, over the tokens of the text.
Their Kronecker product stands for the Fisher information of the weights (K-FAC, Martens and Grosse, arXiv 1503.05671),
and that for the loss's second derivative: the value is a loss increase in nats per token before any scale.

One layer is in memory at a time, forwards and then backwards, with the hidden states before every layer.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.models import KVCache, MicroBatch, layers_of
from hetero_infer.models.micro_batch import pad_rows
from hetero_infer.quant.round_to_nearest import round_to_nearest
from hetero_infer.spec import Choice, Phase


def fisher_losses(folder: ModelFolder, choices: Sequence[Choice], windows: torch.Tensor) -> list[list[float]]:
    """Of each decoder layer and choice, on token ids `[windows, tokens]`; 0 at 16 bits."""
    spec, tokens = folder.spec, windows.shape[1]
    batch = MicroBatch(Phase.PREFILL, (0,), (0,), (tokens,))  # one window: a backward pass needs all that it made

    def run(layer: nn.Module, position: int, state: torch.Tensor) -> torch.Tensor:
        own = [position - 1] if position else []
        return layer(state, batch, KVCache(own, 1, tokens, spec.num_key_value_heads, spec.head_dim))

    states = [[pad_rows(window) for window in windows]]
    with torch.no_grad():
        for position in range(spec.num_layers - 1):
            layer = load_layer(folder, position)
            states.append([run(layer, position, state) for state in states[-1]])
    head = load_layer(folder, spec.num_layers - 1)
    gradients = [_gradient(head, state, batch, window) for state, window in zip(states.pop(), windows, strict=True)]
    rows = []
    for position in range(spec.num_layers - 2, 0, -1):
        layer = load_layer(folder, position)
        linears = [_Watched(layer.get_submodule(name)) for name in layers_of(spec)[position].matrices]
        for number, state in enumerate(states.pop()):
            output = run(layer, position, state.requires_grad_())
            wanted = [state, *(linear.output for linear in linears)]
            gradients[number], *of_outputs = torch.autograd.grad(output, wanted, gradients[number])
            for linear, gradient in zip(linears, of_outputs, strict=True):
                linear.count(gradient, tokens)
        rows.append(
            [sum(linear.loss(choice) for linear in linears) if choice.is_quantised else 0.0 for choice in choices]
        )
    return rows[::-1]


def _gradient(head: nn.Module, state: torch.Tensor, batch: MicroBatch, window: torch.Tensor) -> torch.Tensor:
    """Of the tokens' losses by the hidden states that come to the head."""
    logits = head(state.requires_grad_(), batch, None)[: len(window) - 1]
    return torch.autograd.grad(cross_entropy(logits, window[1:], reduction="sum"), state)[0]


class _Watched:
    """A Linear, with the sums of x·xᵀ of its inputs and g·gᵀ of the gradients at its outputs."""

    def __init__(self, linear: nn.Module) -> None:
        self.weight = linear.weight
        outputs, inputs = self.weight.shape
        self.of_inputs, self.of_gradients = torch.zeros(inputs, inputs), torch.zeros(outputs, outputs)
        self.rows = 0
        linear.register_forward_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.input, self.output = inputs[0].detach(), output

    def count(self, gradient: torch.Tensor, live_rows: int) -> None:
        """Of the pass just made, without its padding rows."""
        x, g = self.input[:live_rows], gradient[:live_rows]
        self.of_inputs += x.t() @ x
        self.of_gradients += g.t() @ g
        self.rows += live_rows

    def loss(self, choice: Choice) -> float:
        change = round_to_nearest(self.weight, choice) - self.weight
        both = self.of_gradients @ change @ self.of_inputs * change
        return torch.sum(both, dtype=torch.float64).item() / self.rows**2 / 2
