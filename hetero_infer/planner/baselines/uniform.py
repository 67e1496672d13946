"""The split everyone starts from: even layers on every device at one bitwidth, the highest that can run.

LLM-PQ's *uniform* takes the bitwidth as given, ⌈B/N⌉ sequences per micro-batch in decode and a divisor of that in
prefill. Here every bitwidth and every pair of sizes is tried.
"""

from collections.abc import Callable, Sequence

from hetero_infer.planner.baselines.draft import Stages, best_sized
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import DEFAULT_GROUP_SIZE, Choice
from hetero_infer.spec.plan import Plan


def uniform(request: PlanRequest) -> Plan | NoPlan:
    """All devices in hostfile order, even layers, the highest bits that fit memory and quality, the best sizes."""
    counts = even_counts(request.model.num_hidden_layers, len(request.cluster.devices))
    return highest_bits(request, lambda choice: best_sized(request, one_choice(request, counts, choice)))


def highest_bits(request: PlanRequest, plan_at: Callable[[Choice], Plan | NoPlan]) -> Plan | NoPlan:
    """The first plan from the highest bits down, or what stands in the way of each."""
    reasons = []
    for choice in from_highest(request.choices):
        outcome = plan_at(choice)
        if isinstance(outcome, Plan):
            return outcome
        reasons.append(f"{bits_words(choice)} {outcome.why}")
    return NoPlan(", ".join(reasons))


def one_choice(request: PlanRequest, counts: Sequence[int], choice: Choice) -> Stages:
    """`counts` layers on the devices of the hostfile, all at one choice."""
    return [(device, (choice,) * count) for device, count in zip(request.cluster.devices, counts, strict=True)]


def even_counts(num_layers: int, num_stages: int) -> list[int]:
    """The first stages take the rest."""
    return [num_layers // num_stages + (stage < num_layers % num_stages) for stage in range(num_stages)]


def why_not_uniform(request: PlanRequest, plan: Plan) -> str:
    """One line: how much longer `uniform` takes than `plan`, or why it has no plan."""
    even = uniform(request)
    if isinstance(even, NoPlan):
        return f"no even split can run: {even.why}"
    at_bits = bits_words(even.decoder_choices[0])
    if even.stages == plan.stages:
        return f"this is the even split, at {at_bits}"
    assert plan.estimate and even.estimate
    return f"an even split at {at_bits} would take {even.estimate.total_s / plan.estimate.total_s:.2f}x as long"


def from_highest(choices: Sequence[Choice]) -> list[Choice]:
    return sorted(choices, key=lambda choice: -choice.bits)


def bits_words(choice: Choice) -> str:
    """``4 bits``; the groups only where they are not the usual ones."""
    unusual = choice.is_quantised and choice.group_size != DEFAULT_GROUP_SIZE
    return f"{choice.bits} bits" + (f" in groups of {choice.group_size}" if unusual else "")
