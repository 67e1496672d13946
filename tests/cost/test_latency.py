"""Seconds from a measured profile."""

import itertools
from dataclasses import replace

import pytest

from hetero_infer.cost.latency import ProfiledLatency
from hetero_infer.spec import UNQUANTISED, Choice, Device, InputError, Phase, ProfileRow, ProfileTable

FOUR = Choice(4, 64)
CPU = Device("localhost", 0, "cpu", 2**30)
BATCHES, PROMPTS, PASTS = (1, 4, 8), (16, 64), (32, 128, 512)


def measured(phase: Phase, batch: int, tokens: int) -> float:
    return 1e-3 + 1e-5 * batch**1.5 * tokens + (1e-6 * tokens**2 if phase is Phase.PREFILL else 0)


def row(phase: Phase, batch: int, tokens: int, seconds: float, model: str = "tiny") -> ProfileRow:
    is_prefill = phase is Phase.PREFILL
    sizes = (batch, tokens, 0) if is_prefill else (batch, 1, tokens)
    return ProfileRow("cpu", model, 64, 128, FOUR.bits, FOUR.group_size, "float", phase, *sizes, seconds)


def grid(phase: Phase, lengths: tuple[int, ...], batches: tuple[int, ...] = BATCHES) -> list[ProfileRow]:
    return [row(phase, b, t, measured(phase, b, t)) for b, t in itertools.product(batches, lengths)]


ROWS = grid(Phase.PREFILL, PROMPTS) + grid(Phase.DECODE, PASTS)
LATENCY = ProfiledLatency(ProfileTable(tuple(ROWS)), "tiny")


def decode(batch: int, past: int, device: Device = CPU) -> float:
    return LATENCY.layer_seconds(device, "decoder", FOUR, Phase.DECODE, batch, 1, past)


def test_slowdown_multiplies() -> None:
    assert decode(4, 200, replace(CPU, slowdown=2.5)) == 2.5 * decode(4, 200)


def test_a_choice_without_rows_in_both_phases_is_not_allowed() -> None:
    only_prefill = [replace(r, bits=16, group_size=0) for r in grid(Phase.PREFILL, PROMPTS)]
    latency = ProfiledLatency(ProfileTable((*ROWS, *only_prefill)), "tiny")
    assert latency.allowed_choices(CPU, (FOUR, UNQUANTISED)) == (FOUR,)


def test_a_head_has_choices_of_its_own() -> None:
    head = [replace(r, model="tiny#head", bits=8) for r in ROWS]
    latency = ProfiledLatency(ProfileTable((*ROWS, *head)), "tiny")
    eight = Choice(8, 64)
    assert latency.allowed_choices(CPU, (FOUR, eight)) == (FOUR,)
    assert latency.allowed_choices(CPU, (FOUR, eight), "head") == (eight,)
    assert latency.allowed_choices(CPU, (FOUR, eight), "embedding") == ()


def test_a_device_type_without_rows_is_named_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"t4.*hetero-infer measure"):
        LATENCY.allowed_choices(Device("a", 0, "t4", 2**30), (FOUR,))
    with pytest.raises(InputError, match="no rows of other"):
        ProfiledLatency(ProfileTable(tuple(ROWS)), "other").allowed_choices(CPU, (FOUR,))


def test_embedding_and_head_have_rows_of_their_own() -> None:
    head = replace(row(Phase.DECODE, 1, 32, 7e-4, "tiny#head"), bits=16, group_size=0)
    latency = ProfiledLatency(ProfileTable((*ROWS, head)), "tiny")
    assert latency.layer_seconds(CPU, "head", UNQUANTISED, Phase.DECODE, 1, 1, 999) == 7e-4
    with pytest.raises(InputError, match=r"embedding.*hetero-infer measure"):
        latency.layer_seconds(CPU, "embedding", UNQUANTISED, Phase.DECODE, 1, 1, 32)


def test_a_hole_in_the_grid_leaves_the_regression() -> None:
    linear = [replace(r, seconds=1e-3 + 1e-4 * r.batch + 1e-6 * (r.input_tokens + r.past_tokens)) for r in ROWS]
    latency = ProfiledLatency(ProfileTable(tuple(linear[:-1])), "tiny")
    assert latency.source(CPU).fits["decoder", FOUR, Phase.DECODE].method == "regression"
    hole = linear[-1]
    assert latency.layer_seconds(CPU, "decoder", FOUR, Phase.DECODE, hole.batch, 1, hole.past_tokens) == pytest.approx(
        hole.seconds
    )


def test_points_that_determine_nothing_are_refused() -> None:
    corner = [r for r in ROWS if (r.batch, r.past_tokens) in ((1, 32), (4, 128), (8, 512))]
    with pytest.raises(InputError, match=r"decode of tiny's decoder at 4g64 bits on cpu: 3 points .* no regression"):
        ProfiledLatency(ProfileTable(tuple(corner)), "tiny")


def test_one_measured_batch_says_nothing_about_larger_ones() -> None:
    latency = ProfiledLatency(ProfileTable(tuple(grid(Phase.DECODE, PASTS, (2,)))), "tiny")
    assert latency.layer_seconds(CPU, "decoder", FOUR, Phase.DECODE, 1, 1, 32) == measured(Phase.DECODE, 2, 32)
    with pytest.raises(InputError, match="batch = 2 only"):
        latency.layer_seconds(CPU, "decoder", FOUR, Phase.DECODE, 4, 1, 32)


def test_held_out_points_are_predicted_from_the_others() -> None:
    """Batch 4 and a past of 128 lie inside their axes; where seconds are bilinear they are predicted exactly."""
    bilinear = [replace(r, seconds=1e-3 + 1e-5 * r.batch * (r.input_tokens + r.past_tokens)) for r in ROWS]
    exact = ProfiledLatency(ProfileTable(tuple(bilinear)), "tiny").holdout("cpu")
    held = [r for r in ROWS if r.batch == 4 or r.past_tokens == 128]
    assert exact.points == len(held) == 7 and exact.worst == pytest.approx(0, abs=1e-12)
    one_off = [replace(r, seconds=r.seconds * 2) if r == bilinear[2] else r for r in bilinear]
    assert one_off[2].batch == 4
    off = ProfiledLatency(ProfileTable(tuple(one_off)), "tiny").holdout("cpu")
    assert off.worst == pytest.approx(0.5) and off.mean == pytest.approx(0.5 / 7)


def test_a_grid_of_two_points_an_axis_holds_nothing_out() -> None:
    two = [r for r in ROWS if r.batch in (1, 8) and r.past_tokens in (0, 32, 512)]
    assert ProfiledLatency(ProfileTable(tuple(two)), "tiny").holdout("cpu") is None


def test_threads_of_a_cpu_make_a_type_of_their_own() -> None:
    on_two = replace(CPU, threads=2)
    assert (CPU.timed_as, on_two.timed_as, replace(on_two, type="t4").timed_as) == ("cpu", "cpu-2", "t4")
    assert LATENCY.knows(CPU) and not LATENCY.knows(on_two)
