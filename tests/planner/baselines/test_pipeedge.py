"""PipeEdge's dynamic programme finds what trying every order, subset and partition finds."""

import math

import pytest

from hetero_infer.bench.planner.tiny import random_request
from hetero_infer.planner.baselines.draft import with_highest_ends
from hetero_infer.planner.baselines.pipeedge import Stations, pipeedge
from hetero_infer.planner.exact.device_classes import device_classes
from hetero_infer.spec import Phase, Plan

from .enumeration import at_sizes, partitions, phase_costs


def stations(request, stages, phase, size):  # type: ignore[no-untyped-def]
    """Compute and sends, without the return, which PipeEdge does not know; None where it cannot run."""
    plan = at_sizes(request, stages, size, size)
    if plan is None:
        return None
    costs = phase_costs(request, plan, phase)
    return [*costs.compute_s, *costs.send_s]


@pytest.mark.parametrize("seed", range(40))
def test_the_slowest_station_is_as_fast_as_it_can_be(seed: int) -> None:
    request = with_highest_ends(random_request(seed))
    choice, size, phase = (
        request.choices[seed % len(request.choices)],
        request.workload.batch_size,
        list(Phase)[seed % 2],
    )
    every = [stations(request, stages, phase, size) for stages in partitions(request, choice)]
    runs = [one for one in every if one]
    classes = device_classes(request.cluster, by_host=True)
    path = Stations.of(request, classes, choice, phase, size).balanced_path()
    if not runs:
        assert path == ()
        return
    free = [iter(one.devices) for one in classes]
    found = stations(request, [(next(free[c]), (choice,) * count) for c, count in path], phase, size)
    slowest = min(map(max, runs))
    assert found and max(found) == pytest.approx(slowest, rel=1e-12)
    assert sum(found) == pytest.approx(min(sum(one) for one in runs if max(one) <= slowest * (1 + 1e-9)), rel=1e-12)


def test_it_takes_the_highest_bits_that_fit() -> None:
    seen = set()
    for seed in range(30):
        request = random_request(seed)
        plan = pipeedge(request)
        if not isinstance(plan, Plan):
            continue
        (choice,) = set(plan.decoder_choices)
        seen.add(choice)
        for better in (other for other in request.choices if other.bits > choice.bits):
            omega = math.fsum(request.sensitivity.of(layer, better) for layer in range(request.model.num_hidden_layers))
            sizes = request.workload.micro_batch_sizes
            assert omega > request.omega_limit or not any(
                at_sizes(request, stages, sizes[-1], sizes[-1]) for stages in partitions(request, better)
            )
    assert len(seen) > 2
