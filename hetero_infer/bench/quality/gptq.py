"""GPTQ beside rounding to nearest: perplexity of held-out text with all decoder layers at one choice.

Rounding is there with the scales of the range, as the product rounds an embedding, and with scales searched as GPTQ's
are: only beside the second is a gain GPTQ's own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hetero_infer.bench.quality.trained import TrainedModel, trained_models
from hetero_infer.bench.section import Demand, Section
from hetero_infer.checkpoint.local_model import LocalModel, single_process_model
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure.perplexity import measure_perplexity
from hetero_infer.models import layers_of
from hetero_infer.quant.linear import QuantLinear
from hetero_infer.quant.round_to_nearest import round_to_nearest
from hetero_infer.spec import UNQUANTISED, Choice
from hetero_infer.spec.gptq import GptqOptions

CHOICES = tuple(Choice(bits, group_size) for bits in (8, 4, 3) for group_size in (32, 64, 128))
NEAREST, SEARCHED, PLAIN = "nearest", "nearest, searched", "gptq"
VARIANTS: Mapping[str, GptqOptions] = {
    PLAIN: GptqOptions(),
    "whole range": GptqOptions(search_scales=False),
    "act-order": GptqOptions(act_order=True),
    "sequential": GptqOptions(sequential=True),
    "both": GptqOptions(act_order=True, sequential=True),
}
MOST_AT_8_BITS = 0.001  # of the unquantised model's perplexity


def measure(folders: Sequence[Path], shared: Path) -> Section:
    rows, demands, facts = [], [], []
    with trained_models(folders, shared) as models:
        for trained in models:
            exact = _perplexity(trained, single_process_model(trained.folder))
            increases = {  # of each choice, by variant
                choice: {name: perplexity / exact - 1 for name, perplexity in found.items()}
                for choice, found in _perplexities(trained).items()
            }
            for choice, found in increases.items():
                rows.append([trained.name, str(choice), *(f"{value:+.2%}" for value in found.values())])
                facts.append({"model": trained.name, "choice": str(choice), "unquantised": exact, **found})
            demands += _demands(trained, increases)
    return Section(
        title="GPTQ beside round-to-nearest: increase of held-out perplexity, all decoder layers at one choice",
        header=("model", "choice", NEAREST, SEARCHED, *VARIANTS),
        rows=rows,
        demands=demands,
        facts=facts,
    )


def _perplexities(trained: TrainedModel) -> dict[Choice, dict[str, float]]:
    checkpoint = trained.work / "checkpoint"
    found: dict[Choice, dict[str, float]] = {choice: {} for choice in CHOICES}
    for name, rounding in {NEAREST: round_to_nearest, SEARCHED: _round_searched}.items():
        for choice, rounded in _rounded(trained, rounding):
            found[choice][name] = _perplexity(trained, rounded)
    windows = CalibrationWindows.from_text(trained.folder, trained.calibration)
    decoders = range(trained.folder.spec.num_hidden_layers)
    for name, options in VARIANTS.items():
        if not options.sequential:  # one pass for all
            wanted = [(layer, choice) for layer in decoders for choice in CHOICES]
            quantise_layers(trained.folder, wanted, windows, checkpoint, options)
        for choice in CHOICES:
            chosen = [choice for _ in decoders]
            whole = (UNQUANTISED, *chosen, UNQUANTISED)
            shards = quantise_layers(trained.folder, enumerate(chosen), windows, checkpoint, options, whole)
            model = single_process_model(trained.folder, chosen, shards, dequantised=True)
            found[choice][name] = _perplexity(trained, model)
    return found


def _rounded(trained: TrainedModel, rounding: Callable[..., Any]) -> Iterator[tuple[Choice, LocalModel]]:
    model = single_process_model(trained.folder)
    linears = [
        model.layers[position].get_submodule(name)
        for position, definition in enumerate(layers_of(trained.folder.spec)[1:-1], 1)
        for name in definition.matrices
    ]
    originals = [linear.weight.data for linear in linears]
    for choice in CHOICES:
        for linear, original in zip(linears, originals, strict=True):
            linear.weight.data = rounding(original, choice)
        yield choice, model


def _round_searched(weight: Any, choice: Choice) -> Any:
    """GPTQ without a Hessian: to nearest, with GPTQ's scales."""
    from hetero_infer.quant.gptq import quantise_linear  # late: it takes auto-gptq and transformers with it

    linear = QuantLinear(choice, weight.shape[1], weight.shape[0])
    linear.load_state_dict(quantise_linear(weight, weight.new_zeros(weight.shape[1], weight.shape[1]), choice))
    return linear.dequantised(weight.dtype).t().contiguous()


def _perplexity(trained: TrainedModel, model: LocalModel) -> float:
    return measure_perplexity(model, trained.folder, trained.heldout).perplexity


def _demands(trained: TrainedModel, increases: Mapping[Choice, Mapping[str, float]]) -> Iterator[Demand]:
    """Of the choices whose groups fit: one that is wider than a matrix's inputs is another choice there."""
    name, narrowest = trained.name, min(trained.folder.spec.hidden_size, trained.folder.spec.intermediate_size)
    fitting = {choice: found for choice, found in increases.items() if choice.group_size <= narrowest}
    few = {choice: found for choice, found in fitting.items() if choice.bits < 8}
    for rounding in (NEAREST, SEARCHED):
        better = sum(found[PLAIN] < found[rounding] for found in few.values())
        says = f"{name}: GPTQ is better than '{rounding}' at 3 and 4 bits, in {better} of {len(few)} choices"
        yield Demand(says, better == len(few))
    most = max(found[PLAIN] for choice, found in fitting.items() if choice.bits == 8)
    yield Demand(f"{name}: 8 bits cost at most {MOST_AT_8_BITS:.1%}, {most:+.3%}", most <= MOST_AT_8_BITS)
