"""The fleet planner against everything that a tiny cluster can do."""

import itertools
import math
import time
from dataclasses import replace

import pytest

from hetero_infer.planner.check import check_plan
from hetero_infer.planner.fleet.bound import FleetBound
from hetero_infer.planner.fleet.fleet import plan_fleet
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.spec import Cluster, Device, Workload
from hetero_infer.spec.errors import HeteroInferError
from tests.planner.fleet.brute_force import fastest_fleet_s, tiny_request

SEEDS = range(40)


def feasible(seeds: range) -> list[int]:
    return [seed for seed in seeds if math.isfinite(fastest_fleet_s(seed))]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_fleet_is_faster_than_the_bound(seed: int) -> None:
    fastest_s = fastest_fleet_s(seed)
    if math.isinf(fastest_s):
        pytest.skip("no fleet can serve this batch")
    bound = FleetBound(Rates.of(tiny_request(seed)))
    bound_s = bound.seconds(1.3 * fastest_s, deadline_s=time.monotonic() + 5, gap=0.0, most_claims=12)
    assert bound_s <= fastest_s * (1 + 1e-9)
