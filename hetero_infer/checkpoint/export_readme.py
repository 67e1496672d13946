"""What an exported folder says of itself: what is in it, and which engines can read that."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hetero_infer.spec import Choice

TEXT = """\
# {name}, exported by hetero-infer

{layers}

Weights are in the GPTQ convention (`checkpoint_format: gptq`): of each quantised Linear `qweight`, `qzeros` (zero
points less 1), `scales`, `g_idx`. {groups}Everything else is float16.{ends}

| engine | reads it | how we know |
|---|---|---|
{engines}
"""


@dataclass(frozen=True)
class GroupFacts:
    """What the packed groups of all layers have in common; `at_zero` of them have a zero point of 0. `has_parts`: some
    Linear's last group is not a whole one."""

    act_order: bool
    has_parts: bool
    symmetric: bool
    count: int
    at_zero: int


def readme(name: str, choices: Sequence[Choice], is_tied: bool, groups: GroupFacts) -> str:
    """Of `[embedding, decoder 0, …, decoder L-1, head]` at these `choices`; `is_tied` is the exported model."""
    _, *decoders, _ = choices
    return TEXT.format(
        name=name,
        layers=_layers(decoders),
        groups=_groups(groups) if groups.count else "",
        ends=_ends(choices[0], choices[-1], is_tied),
        engines="\n".join(f"| {' | '.join(row)} |" for row in _engines(set(decoders), groups)),
    )


def _layers(decoders: Sequence[Choice]) -> str:
    counted = Counter(decoders)
    parts = ", ".join(f"{counted[choice]} at {_words(choice)}" for choice in sorted(counted))
    return f"{len(decoders)} decoder layers: {parts}."


def _words(choice: Choice) -> str:
    return f"{choice.bits} bits in groups of {choice.group_size}" if choice.is_quantised else "16 bits"


def _groups(groups: GroupFacts) -> str:
    order = "Inputs are in act-order. " if groups.act_order else ""
    sides = "symmetric" if groups.symmetric else "asymmetric"
    odd = (
        f"{groups.at_zero} of {groups.count} groups have a zero point of 0, which is stored as the largest code: "
        "engines that do not wrap it misread these groups. "
        if groups.at_zero
        else ""
    )
    parts = "Some Linears end in a part of a group. " if groups.has_parts else ""
    return f"The groups are {sides}. {order}{parts}{odd}"


def _ends(embedding: Choice, head: Choice, is_tied: bool) -> str:
    quantised = [
        f"the {end} at {_words(choice)}"
        for end, choice in (("embedding", embedding), ("head", head))
        if choice.is_quantised
    ]
    if not quantised:
        return " Embedding and head are tied, and written twice, as auto-gptq needs it." if is_tied else ""
    return (
        f" The plan had {' and '.join(quantised)}; other engines do not read that. Here the values are "
        "dequantised and rounded to float16, embedding and head a tensor each: the model is larger than planned."
    )


def _engines(choices: set[Choice], groups: GroupFacts) -> list[tuple[str, str, str]]:
    in_vllm = groups.symmetric and not groups.has_parts and all(choice.bits in (4, 8, 16) for choice in choices)
    vllm = ("vLLM", "yes" if in_vllm else "no: it takes 4 and 8 bits, symmetric, in whole groups", "documented")
    gptqmodel = "not known, for parts of groups" if groups.has_parts else "yes"
    rows = [("hetero-infer", "yes", "tested: the same tokens")]
    if not groups.count:
        return [*rows, ("any other", "yes, as an unquantised model", "documented")]
    if len(choices) > 1:
        return [
            *rows,
            ("gptqmodel", f"{gptqmodel}, by `dynamic`", "documented"),
            ("auto-gptq, transformers", "no: without `dynamic` all layers are one choice to them", "documented"),
            vllm,
        ]
    return [
        *rows,
        ("auto-gptq 0.7.1", "yes", "tested: the same logits, on a CPU"),
        ("gptqmodel; transformers with one of the two", gptqmodel, "documented"),
        vllm,
    ]
