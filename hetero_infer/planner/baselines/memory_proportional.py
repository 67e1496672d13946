"""Layers in proportion to memory, at one bitwidth: the split of who looks at the cards and not at the clock."""

from hetero_infer.planner.baselines.draft import best_sized
from hetero_infer.planner.baselines.uniform import highest_bits, one_choice
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.plan import Plan


def memory_proportional(request: PlanRequest) -> Plan | NoPlan:
    """All devices in hostfile order, layers by memory, the highest bits that fit memory and quality, the best sizes."""
    counts = proportional_counts(request.model.num_hidden_layers, [d.memory_bytes for d in request.cluster.devices])
    return highest_bits(request, lambda choice: best_sized(request, one_choice(request, counts, choice)))


def proportional_counts(num_layers: int, weights: list[int]) -> list[int]:
    """Whole layers by weight, at least one each: the next layer goes where it is least above its due. None for
    anybody where there are too few."""
    counts = [int(len(weights) <= num_layers)] * len(weights)
    for _ in range(num_layers - len(weights)):
        due = [(count + 1) / weight for count, weight in zip(counts, weights, strict=True)]
        counts[due.index(min(due))] += 1
    return counts
