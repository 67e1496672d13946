"""A plan with one thing changed: a choice, a border of stages, a micro-batch size. Neither checked nor estimated."""

from collections.abc import Sequence
from dataclasses import replace

from hetero_infer.spec.choice import Choice
from hetero_infer.spec.plan import Plan, StagePlan
from hetero_infer.spec.workload import Phase


def with_choice(plan: Plan, layer: int, choice: Choice) -> Plan:
    """`plan` with decoder layer `layer` at `choice`."""
    index = layer + 1
    return replace(
        plan,
        stages=tuple(
            StagePlan(
                stage.device,
                tuple(choice if first + i == index else old for i, old in enumerate(stage.layers)),
            )
            for first, stage in zip(plan.bounds, plan.stages, strict=False)
        ),
    )


def with_layers(plan: Plan, decoders: Sequence[Sequence[Choice]]) -> Plan:
    """`plan` with these decoder layers on its stages, which keep their ends."""
    last = len(plan.stages) - 1
    return replace(
        plan,
        stages=tuple(
            StagePlan(stage.device, stage.layers[: number == 0] + tuple(layers) + stage.layers[-1:] * (number == last))
            for number, (stage, layers) in enumerate(zip(plan.stages, decoders, strict=True))
        ),
    )


def with_layer_moved(plan: Plan, source: int, target: int) -> Plan:
    """`plan` with the decoder layer at the border of two neighbouring stages on the other side of it."""
    stages = list(plan.stages)
    give, take = stages[source].layers, stages[target].layers
    give, take = (give[1:], (*take, give[0])) if source > target else (give[:-1], (give[-1], *take))
    stages[source], stages[target] = replace(stages[source], layers=give), replace(stages[target], layers=take)
    return replace(plan, stages=tuple(stages))


def with_size(plan: Plan, phase: Phase, size: int) -> Plan:
    """`plan` with micro-batches of `size` sequences in `phase`."""
    if phase is Phase.PREFILL:
        return replace(plan, prefill_micro_batch_size=size)
    return replace(plan, decode_micro_batch_size=size)
