"""GPTQ's ``quantization_config``: from one to the choice of each decoder layer, and back.

The dictionary is that of auto-gptq, with `dynamic` as gptqmodel has it: rules that change or lift it for the modules
whose names they match, the first match counting.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.errors import located
from hetero_infer.spec.families.config import ModelConfig
from hetero_infer.spec.fields import read_some_fields, read_value
from hetero_infer.spec.model import ModelSpec

ONE_GROUP = -1  # over all inputs, as a `group_size`
INPUTS_PER_BLOCK = 32  # a `Choice` has groups of whole blocks


def stored_choices(config: ModelConfig, spec: ModelSpec) -> tuple[Choice, ...]:
    """Of each decoder layer of a folder that is quantised already; none where it is not."""
    said = config.table("quantization_config")
    if said is None:
        return ()
    if said.content.get("quant_method") != "gptq":
        raise said.refusal("quant_method", "this version reads 'gptq' only; give the unquantised model")
    said.refuse_unless("checkpoint_format", "gptq", "this version reads 'gptq', where zero points are stored less 1")
    said.refuse_unless("is_marlin_format", False, "save it without")
    said.refuse_unless("pack_dtype", "int32", "this version reads int32")
    said.refuse_unless("lm_head", False, "a quantised head is not read; leave it at 16 bits")
    _refuse_left_out(said, spec)
    rules = said.table("dynamic")
    return tuple(
        _choice_of(layer, said, rules.content if rules else {}, spec) for layer in range(spec.num_hidden_layers)
    )


def quantization_config(
    spec: ModelSpec, choices: Sequence[Choice], *, reads_g_idx: bool, symmetric: bool
) -> dict[str, Any]:
    """Of decoder layers at these choices, at least one below 16 bits; `dynamic` is there for mixed ones only.

    `reads_g_idx` makes engines look up which group an input is in; without it they count.
    """
    ((base, _),) = Counter(choice for choice in choices if choice.is_quantised).most_common(1)
    block = next(iter(_linears_of(spec, 0))).partition(".0.")[0].rpartition(".")[2]
    dynamic = {
        f"{'+' if choice.is_quantised else '-'}:.*\\.{block}\\.{layer}\\..*": _said(choice, spec)
        for layer, choice in enumerate(choices)
        if choice != base
    }
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        **_said(base, spec),
        "desc_act": reads_g_idx,
        "sym": symmetric,
        "lm_head": False,
        **({"dynamic": dynamic} if dynamic else {}),
    }


def _said(choice: Choice, spec: ModelSpec) -> dict[str, int]:
    if not choice.is_quantised:
        return {}
    is_one = choice.group_size >= max(linear.in_features for linear in spec.linears.values())
    return {"bits": choice.bits, "group_size": ONE_GROUP if is_one else choice.group_size}


def _choice_of(layer: int, said: ModelConfig, rules: Mapping[str, Any], spec: ModelSpec) -> Choice:
    choices = {_choice_of_linear(name, said, rules, spec) for name in _linears_of(spec, layer)}
    if len(choices) > 1:
        found = ", ".join(map(str, sorted(choices)))
        raise said.refusal("dynamic", f"decoder layer {layer} is at {found}, and here a layer has one choice")
    return choices.pop()


def _choice_of_linear(name: str, said: ModelConfig, rules: Mapping[str, Any], spec: ModelSpec) -> Choice:
    place, changes = f"model config {said.where}", {}
    for rule, values in rules.items():
        if _matches(rule, name, said):
            if rule.startswith("-:"):
                return UNQUANTISED
            changes = read_value(values, dict, f"{place}: dynamic, {rule}")
            break
    entry = read_some_fields({**said.content, **changes}, {"bits": int, "group_size": int}, place)
    group_size = entry["group_size"]
    if group_size == ONE_GROUP:
        widest = max(linear.in_features for linear in spec.linears.values())
        group_size = -(-widest // INPUTS_PER_BLOCK) * INPUTS_PER_BLOCK
    with located(place):
        return Choice(entry["bits"], group_size)


def _matches(rule: str, name: str, said: ModelConfig) -> bool:
    try:
        return re.match(rule.removeprefix("-:").removeprefix("+:"), name) is not None
    except re.error as error:
        raise said.refusal("dynamic", f"{rule!r} is no regular expression ({error})") from error


def _refuse_left_out(said: ModelConfig, spec: ModelSpec) -> None:
    """transformers names here the Linears of a layer that are quantised, where not all are."""
    blocks = said.content.get("modules_in_block_to_quantize")
    if blocks is None:
        return
    place = f"model config {said.where}: modules_in_block_to_quantize"
    names = [str(name) for block in read_value(blocks, list, place) for name in read_value(block, list, place)]
    if not all(name.endswith(tuple(names)) for name in _linears_of(spec, 0)):
        raise said.refusal("modules_in_block_to_quantize", "all Linears of a layer must be, or none")


def _linears_of(spec: ModelSpec, layer: int) -> list[str]:
    """By their names in the model folder."""
    return [spec.tensors[part].format(layer) for part in spec.linears]
