"""adabits finds the least Σω that any contiguous partition in hostfile order can have."""

import math

import pytest

from hetero_infer.bench.planner.tiny import random_request
from hetero_infer.planner.baselines.adabits import LeastLoss
from hetero_infer.planner.baselines.draft import with_highest_ends
from hetero_infer.planner.problem import build_problem

from .enumeration import assignments, at_sizes, omega_of


@pytest.mark.parametrize("seed", range(40))
def test_the_loss_is_the_least_there_is(seed: int) -> None:
    request = with_highest_ends(random_request(seed))
    size = request.workload.batch_size
    plans = (at_sizes(request, stages, size, size) for stages in assignments(request, request.cluster.devices))
    least = min((omega_of(request, plan.decoder_choices) for plan in plans if plan), default=math.inf)
    problem = build_problem(request, size, size)
    found = LeastLoss([problem]).partitions(problem)
    losses = [omega_of(request, [choice for stage in layers for choice in stage]) for layers in found]
    assert min(losses, default=math.inf) == pytest.approx(least, rel=1e-12)
    stages = [list(zip(request.cluster.devices, layers, strict=True)) for layers in found]
    assert all(at_sizes(request, one, size, size) for one in stages)
