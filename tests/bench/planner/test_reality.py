"""Their plans, run by our schedule with their layer times, beside their log."""

from pathlib import Path

import pytest

from hetero_infer.bench.planner.published import llm_pq_latency
from hetero_infer.bench.planner.reality import measure, published_rows
from hetero_infer.spec import UNQUANTISED, Choice, Device, Phase

V100 = Device("node", 3, "v100-32", 2**35)


def test_every_row_with_a_plan_is_simulated_and_every_far_one_explained(shared: Path) -> None:
    rows = list(published_rows(shared))
    assert [row.cluster for row in rows] == ["3"] * 4 + ["9"] * 5
    section = measure(shared)
    assert len(section.rows) == len(section.facts) == len(rows)
    (demand,) = section.demands
    assert demand.is_met and demand.says.startswith(f"{sum(row.is_close for row in rows)} of 9")
    for row in rows:
        if not row.is_close:
            assert any(f"Cluster {row.cluster} {row.method}, " in note for note in section.notes)


def test_a_row_by_hand(shared: Path) -> None:
    """Cluster 3's own plan: 24 layers of 8 bits and the head on the V100, the slowest stage, set the pace of 80 rounds
    of four micro-batches. The schedule starts the first of them while the others are still in prefill."""
    row = next(row for row in published_rows(shared) if row.method == "llm_pq")
    latency = llm_pq_latency(shared)
    layer_s = latency.layer_seconds(V100, "decoder", Choice(8, 64), Phase.DECODE, 8, 1, 512)
    head_s = latency.layer_seconds(V100, "head", UNQUANTISED, Phase.DECODE, 8, 1, 512)
    stage_s = 24 * layer_s + head_s
    assert row.slowest_stage == 3
    assert row.slowest_decode_s == pytest.approx((stage_s, (80.130078 - 13.857266) / 320))
    assert row.simulated.decode_s == pytest.approx(320 * stage_s, rel=5e-3)
    assert row.tokens_per_s == pytest.approx(32 * 80 / row.simulated.total_s)
