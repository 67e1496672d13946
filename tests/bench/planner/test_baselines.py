"""The bench of the baselines is fair to them: what it draws is what it says, and a lost duel is shown."""

import pytest

from hetero_infer.bench.planner import baselines as bench
from hetero_infer.bench.planner.baselines import Duel, demand, geometric_mean, why_near
from hetero_infer.bench.planner.random_clusters import random_cluster_request
from hetero_infer.bench.planner.tiny import random_request
from hetero_infer.cost.memory import decoder_layer_bytes, kv_cache_bytes
from hetero_infer.planner.baselines.memory_proportional import memory_proportional
from hetero_infer.planner.baselines.pipeedge import pipeedge
from hetero_infer.planner.compare import compare
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.spec import Choice, Plan


@pytest.mark.parametrize("seed", range(1, 30))
def test_a_random_cluster_has_unlike_devices_and_a_model_that_needs_their_memory(seed: int) -> None:
    request = random_cluster_request(seed)
    devices = request.cluster.devices
    assert 2 <= len(devices) <= 8 and 2 <= len({device.type for device in devices}) <= 4
    needs = request.model.num_hidden_layers * (
        decoder_layer_bytes(request.model, Choice(8, 64), 2) + kv_cache_bytes(request.model, request.workload, 2)
    )
    assert 0.2 < needs / sum(device.memory_bytes for device in devices) < 0.9
    assert 4**-4 <= request.omega_limit <= 1


def test_a_seed_is_a_cluster() -> None:
    one, same, other = (random_cluster_request(seed) for seed in (1, 1, 2))
    assert (one.cluster, one.sensitivity, one.model) == (same.cluster, same.sensitivity, same.model)
    assert one.cluster != other.cluster and one.sensitivity != other.sensitivity


def duel(faster_first: bool) -> Duel:
    """By memory against PipeEdge, on a request where PipeEdge is faster."""
    for seed in range(100):
        request = random_request(seed)
        slow, fast = memory_proportional(request), pipeedge(request)
        if isinstance(slow, Plan) and isinstance(fast, Plan):
            assert slow.estimate and fast.estimate
            if fast.estimate.total_s < 0.9 * slow.estimate.total_s:
                ours, other = (fast, memory_proportional) if faster_first else (slow, pipeedge)
                return Duel(f"seed {seed}", compare(request, ours, {"the other": other}))
    raise AssertionError("no such request")


def test_a_baseline_that_is_faster_is_named_and_the_demand_not_met() -> None:
    lost, won = duel(faster_first=False), duel(faster_first=True)
    assert won.is_won and demand([won]).is_met
    said = demand([won, lost])
    assert not said.is_met and lost.name in said.says and "the other" in said.says
    assert lost.others["the other"] == pytest.approx(1 / won.others["the other"])


def test_a_cluster_without_a_plan_in_time_is_named_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TIME_LIMIT_S", 0)
    none = bench._duel(bench.Job("it", lambda: random_request(1), ilp_limit_s=1))
    assert isinstance(none, NoPlan) and not none.is_proven
    (line,) = bench._undecided({"it": none, "that": NoPlan("proven", is_proven=True)})
    assert line.startswith("it: no plan in 0 s")


def test_the_reason_of_a_near_duel_names_what_differs() -> None:
    request = random_request(0)
    plan = pipeedge(request)
    assert isinstance(plan, Plan)
    same = Duel("itself", compare(request, plan, {"itself": pipeedge}))
    assert why_near(same) == "itself has the same partition, and all else"
    assert why_near(duel(faster_first=True)) != why_near(same)


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert geometric_mean([4.0, 0.25]) == pytest.approx(1)
