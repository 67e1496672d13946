"""Helix's cards: the bench's tables hold what they say."""

from pathlib import Path

import pytest

from hetero_infer.bench.planner import helix
from hetero_infer.spec import Phase


def test_held_out_points_are_within_what_was_asked_on_every_card(shared: Path) -> None:
    section = helix.measure_holdout(shared)
    assert all(demand.is_met for demand in section.demands)
    assert {(row[0], row[1]) for row in section.rows} == {
        (card, phase) for card in ("t4", "l4", "v100-16", "a100-40") for phase in Phase
    }


def test_a_mix_is_planned_at_16_bits_with_all_80_layers(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helix, "MIXES", ({"a100-40": 4},))
    (fact,) = helix.measure_mixes(shared).facts
    assert sum(stage["layers"] for stage in fact["stages"]) == 80
    assert fact["gap"] <= helix.GAP and fact["tokens_per_s"] > 0
    used = [stage["device"] for stage in fact["stages"]]
    assert len(used) + sum(fact["left_out"].values()) == 4
