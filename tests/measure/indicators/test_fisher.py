from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure.indicators.fisher import fisher_losses
from hetero_infer.models import MicroBatch, layers_of
from hetero_infer.quant.round_to_nearest import round_to_nearest
from hetero_infer.spec import UNQUANTISED, Choice, Phase
from tests.tiny_model import BLOOM, OPT, TINY, write_tiny_model

CHOICE = Choice(3, 32)


def by_the_whole_model(folder: ModelFolder, windows: torch.Tensor) -> list[float]:
    """All layers in memory, a token at a time; at an output's offset, the gradient is that of the output."""
    model, tokens = single_process_model(folder), windows.shape[1]
    batch = MicroBatch(Phase.PREFILL, (0,), (0,), (tokens,))
    linears = {
        (layer, name): model.layers[1 + layer].get_submodule(name)
        for layer in range(folder.spec.num_hidden_layers)
        for name in layers_of(folder.spec)[1 + layer].matrices
    }
    inputs: dict[tuple[int, str], list[torch.Tensor]] = {key: [] for key in linears}
    offsets: dict[tuple[int, str], list[torch.Tensor]] = {key: [] for key in linears}

    def watch(key: tuple[int, str]) -> None:
        def add(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            inputs[key].append(args[0].detach()[:tokens])
            offsets[key].append(torch.zeros_like(output).requires_grad_())
            return output + offsets[key][-1]

        linears[key].register_forward_hook(add)

    for key in linears:
        watch(key)
    for window in windows:
        hidden = model._hidden(window, batch, model._cache(1, tokens))
        cross_entropy(model.layers[-1](hidden, batch, None)[: tokens - 1], window[1:], reduction="sum").backward()
    losses = [0.0] * folder.spec.num_hidden_layers
    for (layer, name), linear in linears.items():
        x = torch.cat(inputs[layer, name]).double()
        g = torch.cat([offset.grad[:tokens] for offset in offsets[layer, name]]).double()
        moved = x @ (round_to_nearest(linear.weight, CHOICE) - linear.weight).double().t()
        # ½·tr(G ΔW A ΔWᵀ) is half the mean, over every pair of tokens, of the squared product of one's gradient with
        # the other's error.
        losses[layer] += (g @ moved.t()).square().mean().item() / 2
    return losses


@pytest.mark.parametrize("family", [TINY, OPT, BLOOM], ids=["llama", "opt", "bloom"])
def test_layer_by_layer_gives_what_the_whole_model_gives(
    family: dict[str, object], windows: CalibrationWindows, tmp_path: Path
) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path / "model", family=family))
    rows = fisher_losses(folder, [CHOICE, UNQUANTISED], windows.token_ids)
    assert [row[0] for row in rows] == pytest.approx(by_the_whole_model(folder, windows.token_ids), rel=1e-4)
    assert [row[1] for row in rows] == [0.0] * 3
