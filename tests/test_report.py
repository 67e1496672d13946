"""What people are shown of a plan: the facts are in it, it fits a terminal, and a terminal without Unicode too."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hetero_infer.planner.compare import Compared
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.report import comparison_text, encodable, labelled, memory_bar, plan_table, run_lengths, text_table
from hetero_infer.spec import (
    UNQUANTISED,
    Choice,
    Device,
    Plan,
    PlanEstimate,
    QualityPlan,
    SolverReport,
    StagePlan,
    Workload,
)

MIB, GIB = 2**20, 2**30
BITS = (Choice(3, 64), Choice(4, 64), Choice(8, 64), UNQUANTISED)
LONG_NAME = "put-your-p100-host-into-hostfiles-mix"


def plan_of(
    devices: Sequence[Device],
    num_layers: int,
    choices: Sequence[Choice],
    ends: tuple[Choice, Choice] = (UNQUANTISED, UNQUANTISED),
) -> Plan:
    """Even stages; `choices` over and over. Every device is filled to 5 eighths: weights 3, KV cache 1, workspace 1."""
    last, share = len(devices) - 1, num_layers // len(devices)
    pattern = [choices[layer % len(choices)] for layer in range(num_layers)]
    return Plan(
        model={"num_hidden_layers": num_layers},
        devices=tuple(devices),
        workload=Workload(32, 512, 100),
        stages=tuple(
            StagePlan(
                device.name,
                (
                    *ends[:1] * (stage == 0),
                    *pattern[share * stage : None if stage == last else share * (stage + 1)],
                    *ends[1:] * (stage == last),
                ),
            )
            for stage, device in enumerate(devices)
        ),
        prefill_micro_batch_size=4,
        decode_micro_batch_size=32,
        estimate=PlanEstimate(
            prefill_s=12.25,
            decode_s=45.5,
            tokens_per_s=55.4,
            closed_form_s=58.25,
            stage_seconds=tuple({"prefill": 1.25, "decode": 0.0125} for _ in devices),
            memory_bytes=tuple(
                {"weights": size * 3, "kv_cache": size, "workspace": size}
                for size in (device.memory_bytes // 8 for device in devices)
            ),
        ),
        quality=QualityPlan(0.1, 0.0953, 0.0666, "nats per token"),
        solver=SolverReport("pyomo+highs 1.15.1", "time limit", 58.25, 57.75, 0.0086, 60.0),
    )


EIGHT_CPUS = [Device("localhost", slot, "cpu", 8 * MIB, 1 + slot / 2) for slot in range(8)]
MIXED_GPUS = [
    Device("node-a", 0, "v100-32", 32 * GIB),
    Device("node-b", 0, "t4", 16 * GIB),
    Device(LONG_NAME, 11, "p100", 16 * GIB),
    Device("node-c.cluster.example.org", 2, "a100-80", 80 * GIB, 2.5),
]
PLANS = {
    "eight cpus": plan_of(EIGHT_CPUS, 24, BITS[:3]),
    "mixed gpus": plan_of(MIXED_GPUS, 108, BITS),
    "one gpu": plan_of([Device(LONG_NAME, 0, "a100-80", 80 * GIB)], 48, BITS),
    "quantised ends": plan_of(EIGHT_CPUS, 24, BITS[:3], (Choice(4, 64), Choice(8, 64))),
    "two layers": plan_of(EIGHT_CPUS[:2], 2, BITS),
}


def stage_rows(table: str) -> list[str]:
    return table.split("\n\n")[0].splitlines()[2:]


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_fits_120_columns_and_lines_up(name: str) -> None:
    plan = PLANS[name]
    table = plan_table(plan)
    assert all(len(line) <= 120 and line == line.rstrip() for line in table.splitlines())
    rows = stage_rows(table)
    assert len(rows) == len(plan.stages) and len({len(row) for row in rows}) == 1


def test_what_bits_the_ends_have_is_said_where_they_are_quantised() -> None:
    first, *_, last = stage_rows(plan_table(PLANS["quantised ends"]))
    assert "0–2 (3) + emb at 4" in first and "21–23 (3) + head at 8" in last


@pytest.mark.parametrize("name", PLANS)
def test_what_ascii_cannot_write_has_an_ascii_sign_of_the_same_width(name: str) -> None:
    table = plan_table(PLANS[name])
    in_ascii = encodable(table, "ascii")
    assert in_ascii.isascii() and "?" not in in_ascii
    assert [len(line) for line in in_ascii.splitlines()] == [len(line) for line in table.splitlines()]
    assert encodable(table, "utf-8") == table
    assert encodable("node-ä: 2×4", "ascii") == "node-?: 2x4"
    assert encodable("node-ä: 2×4", "latin-1") == "node-ä: 2×4"


def test_every_fact_of_the_plan_is_there() -> None:
    plan = PLANS["eight cpus"]
    table = plan_table(plan)
    first, *_, last = stage_rows(table)
    for fact in ("localhost:0 cpu ", "0–2 (3) + emb", "1×3 1×4 1×8", "5.0 of 8.0", "1.25 s", "12.5 ms"):
        assert fact in first
    assert "localhost:7 cpu slowed 4.5×" in last and "21–23 (3) + head" in last
    for fact in (
        "32 sequences, 512 prompt + 100 new tokens",
        "12.25 s predicted, 8 micro-batches of 4",
        "45.50 s predicted, 1 micro-batch of 32",
        "57.75 s predicted, 55.4 tokens/s",
        "0.0666 of at most 0.0953 nats per token: perplexity +6.9% predicted, +10.0% at most",
        "time limit in 60.0 s",
        "bound 57.7500 s, gap 0.86%",
    ):
        assert fact in table
    assert "emulated" in table and "counted by bits" not in table


def test_gpus_are_told_in_gib_and_not_called_emulated() -> None:
    plan = plan_of(MIXED_GPUS[:2], 8, BITS[:1])
    table = plan_table(plan)
    assert "GiB" in table and "MiB" not in table and "20.0 of 32.0" in table
    assert "emulated" not in table and "slowed" not in table


def test_long_patterns_are_counted_and_long_names_keep_their_slot_and_type() -> None:
    table = plan_table(PLANS["mixed gpus"])
    third = stage_rows(table)[2]
    assert "7×3 6×4 7×8 7×16*" in third and "* counted by bits" in table
    assert "put-" in third and ":11 p100" in third and LONG_NAME not in third


def test_both_ends_may_stand_on_one_stage_and_a_stage_may_have_nothing_else() -> None:
    assert "0–47 (48) + ends" in plan_table(PLANS["one gpu"])
    plan = PLANS["two layers"]
    first, second = plan.stages
    moved = replace(
        plan, stages=(replace(first, layers=first.layers[:1]), replace(second, layers=(BITS[0], *second.layers)))
    )
    rows = stage_rows(plan_table(moved))
    assert rows[0].split()[:4] == ["0", "localhost:0", "cpu", "emb"] and "0–1 (2) + head" in rows[1]


def test_the_bar_shows_each_share_and_what_is_free() -> None:
    parts = {"weights": 3, "kv_cache": 1, "workspace": 1}
    assert memory_bar(parts, 8, 16) == "█" * 6 + "▓" * 2 + "▒" * 2 + "░" * 6
    assert memory_bar(parts, 5, 10) == "█" * 6 + "▓" * 2 + "▒" * 2
    rng = random.Random(0)
    for _ in range(200):
        parts = {part: rng.randrange(10**6) for part in ("weights", "kv_cache", "workspace")}
        budget = sum(parts.values()) + rng.randrange(10**6)
        bar = memory_bar(parts, budget, 20)
        assert len(bar) == 20
        for block, size in zip("█▓▒", parts.values(), strict=True):
            assert abs(bar.count(block) - 20 * size / budget) <= 1


def test_run_lengths_read_like_the_plan() -> None:
    assert run_lengths([BITS[0], BITS[0], BITS[1], BITS[0]]) == "2×3 1×4 1×3"


def test_columns_stand_left_or_right() -> None:
    table = text_table([("name", "n"), ("a", "10"), ("bcdef", "9")], right=(1,))
    assert table.splitlines() == ["name    n", "-----  --", "a      10", "bcdef   9"]


def test_a_long_sentence_goes_on_under_itself() -> None:
    lines = labelled("memory", "word " * 60).splitlines()
    assert len(lines) > 2 and lines[0].startswith("memory      word")
    assert all(line.startswith(" " * 12 + "word") and len(line) <= 120 for line in lines[1:])


@pytest.mark.parametrize("name", PLANS)
def test_a_comparison_has_a_line_for_each_planner_and_says_why_one_has_no_plan(name: str) -> None:
    lacks = ", ".join(f"{bits} bits lacks 1234.5 MiB on {LONG_NAME}:11" for bits in (16, 8, 4, 3))
    rows = [Compared("this plan", PLANS[name], 1.0, 0.0666), Compared("uniform", NoPlan(lacks), None, None)]
    text = comparison_text(rows)
    table, why = text.splitlines()[:4], text.splitlines()[4:]
    assert max(map(len, text.splitlines())) <= 120
    assert table[2].split()[:7] == ["this", "plan", "12.25", "s", "45.50", "s", "55.4"] and "62% of " in table[2]
    assert table[3].split() == ["uniform", "none"] and " ".join(" ".join(why).split()) == f"none uniform: {lacks}"


def test_what_held_out_text_says_stands_beside_the_prediction() -> None:
    plan = PLANS["one gpu"]

    def said(measured: float | None) -> str:
        return " ".join(plan_table(replace(plan, quality=replace(plan.quality, measured=measured))).split())

    assert "+6.9% predicted, +10.0% at most" in said(None)
    assert "+6.9% predicted, +1.0% measured on held-out text, +10.0% at most solver" in said(0.01)
    assert "+22.1% measured on held-out text, +10.0% at most, which is broken" in said(0.2)
