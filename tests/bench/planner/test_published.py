"""Other people's measurements say the same in our units and at our sizes."""

from pathlib import Path

import pytest

from hetero_infer.bench.planner.published import helix_latency, llm_pq_latency
from hetero_infer.spec import UNQUANTISED, Choice, Device, InputError, Phase

T4, V100, P100 = (Device("node", 0, name, 2**34) for name in ("t4", "v100-32", "p100-12"))
THREE, FOUR, EIGHT = Choice(3, 64), Choice(4, 64), Choice(8, 64)


def test_helix_counts_the_tokens_of_a_whole_prefill_batch_and_no_past(shared: Path) -> None:
    latency = helix_latency(shared)

    def seconds(phase: Phase, *sizes: int) -> float:
        return latency.layer_seconds(T4, "decoder", UNQUANTISED, phase, *sizes)

    assert seconds(Phase.PREFILL, 4, 500, 0) == seconds(Phase.PREFILL, 1, 2000, 0) == pytest.approx(0.128)
    assert seconds(Phase.DECODE, 20, 1, 99) == seconds(Phase.DECODE, 20, 1, 999) == pytest.approx(0.009)


def test_llm_pq_has_two_cards_at_four_choices_and_one_at_two(shared: Path) -> None:
    latency = llm_pq_latency(shared)
    choices = (THREE, FOUR, EIGHT, UNQUANTISED)
    assert latency.allowed_choices(T4, choices) == latency.allowed_choices(V100, choices) == choices
    assert latency.allowed_choices(P100, choices) == (FOUR, UNQUANTISED)
    with pytest.raises(InputError, match="batch = 8 only"):
        latency.layer_seconds(P100, "decoder", FOUR, Phase.DECODE, 16, 1, 512)


def test_llm_pqs_eight_bits_are_int8_and_their_decode_stands_at_512_tokens(shared: Path) -> None:
    latency = llm_pq_latency(shared)
    for past in (512, 590):
        assert latency.layer_seconds(V100, "decoder", EIGHT, Phase.DECODE, 8, 1, past) == pytest.approx(8.077287674e-3)
    prefill = latency.layer_seconds(T4, "decoder", EIGHT, Phase.PREFILL, 8, 512, 0)
    assert prefill == pytest.approx(173.6923337e-3, rel=0.05), "the regression through 40.6, 81.8 and 173.7 ms"


def test_head_and_embedding_are_from_the_spec_sheet(shared: Path) -> None:
    latency = llm_pq_latency(shared)
    head = latency.layer_seconds(T4, "head", UNQUANTISED, Phase.DECODE, 8, 1, 512)
    assert head == latency.spec_sheet.layer_seconds(T4, "head", UNQUANTISED, Phase.DECODE, 8, 1, 512)
    assert latency.allowed_choices(T4, (EIGHT, UNQUANTISED), "head") == (EIGHT, UNQUANTISED)
