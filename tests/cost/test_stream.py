"""Streams served request by request, by hand and beside the closed form of the steady state."""

import random
from itertools import pairwise

import pytest

from hetero_infer.bench.planner.streams import even_case
from hetero_infer.cost.stream import newcomers, stream
from hetero_infer.spec import Phase, Workload
from hetero_infer.spec.requests import RequestLengths


def stations(phase: Phase, sequences: int, tokens: int) -> list[float]:
    """Two stages: prefill 3 and 1 s, decode 1 and 1 s, half a second for every message."""
    return [3.0 if phase is Phase.PREFILL else 1.0, 0.5, 1.0, 0.5]


def test_a_stream_that_a_station_bounds_takes_the_closed_form() -> None:
    bound = [case for case in map(even_case, range(60)) if case.closed_form_s and case.is_station_bound]
    assert len(bound) > 30 and len({case.costs.num_stages for case in bound}) == 5
    for case in bound:
        assert case.settled_period_s() == pytest.approx(case.closed_form_s, rel=1e-9), case


def test_no_even_stream_is_slower_than_the_closed_form() -> None:
    others = [case for case in map(even_case, range(60)) if not case.is_station_bound]
    assert len(others) > 5
    for case in others:
        assert case.settled_period_s() <= case.closed_form_s * (1 + 1e-9), case


def test_a_stream_by_hand() -> None:
    """Two slots one by one: a newcomer takes the place that is free, and decodes from its next turn on."""
    first, second, third = (RequestLengths(8, 3, arrived_s) for arrived_s in (0.0, 0.0, 1.0))
    run = stream(stations, [third, first, second], batch_size=2, prefill_size=1, decode_size=1)
    # Both are prefilled at the first turn, D0's: 0-3, back at 5; 3-6, back at 8. D1's turn is next: 8-9, back at 11.
    # D0 9-10, back at 12; D1 11-12, back at 14 with its last token; D0 12-13, back at 15 with its last.
    # The third takes D1's slot at its turn at 14: prefilled 14-17, back at 19; D1 19-20, 22; 22-23, 25.
    done = [(one.request, one.first_token_s, one.last_token_s) for one in run.served]
    assert done == [(second, 8.0, 14.0), (first, 5.0, 15.0), (third, 19.0, 25.0)]


def test_all_are_served_once_in_their_slots_and_after_they_came() -> None:
    rng = random.Random(0)
    for batch_size, prefill_size, decode_size in ((1, 1, 1), (4, 3, 1), (6, 2, 3), (6, 6, 6)):
        requests = [RequestLengths(8, rng.randint(1, 6), rng.uniform(0, 200)) for _ in range(60)]
        served = stream(stations, requests, batch_size, prefill_size, decode_size).served
        assert sorted(map(id, requests)) == sorted(id(one.request) for one in served)
        assert all(one.request.arrived_s < one.first_token_s <= one.last_token_s for one in served)
        assert all((one.first_token_s == one.last_token_s) == (one.request.new_tokens == 1) for one in served)
        first_come = sorted(served, key=lambda one: one.request.arrived_s)
        assert all(a.first_token_s <= b.first_token_s for a, b in pairwise(first_come))
        for moment in (one.first_token_s for one in served):
            assert sum(one.first_token_s <= moment < one.last_token_s for one in served) <= batch_size


def test_a_stream_that_pauses_waits_for_the_next_request() -> None:
    early, late = RequestLengths(8, 2, 0.0), RequestLengths(8, 2, 1000.0)
    served = stream(stations, [early, late], batch_size=4, prefill_size=4, decode_size=4).served
    assert [one.last_token_s for one in served] == [8.0, 1008.0], "alone: 5 s of prefill, 3 s of decode"


def test_stations_are_asked_for_the_sequences_that_are_there() -> None:
    seen = []

    def recording(phase: Phase, sequences: int, tokens: int) -> list[float]:
        seen.append((phase, sequences, tokens))
        return [1.0]

    stream(recording, [RequestLengths(10, 2), RequestLengths(21, 3)], batch_size=2, prefill_size=2, decode_size=2)
    assert seen == [(Phase.PREFILL, 2, 16), (Phase.DECODE, 2, 21), (Phase.DECODE, 1, 22)]


def test_newcomers_are_as_many_as_leave() -> None:
    many = newcomers(Workload(32, 64, 8), prefill_size=1, decode_size=16)
    assert (many.shared, many.alone) == (2.0, 0.0), "4 of 32 a round, 2 decode micro-batches"
    few = newcomers(Workload(32, 64, 128), prefill_size=1, decode_size=8)
    assert few.shared * 4 + few.alone == pytest.approx(32 / 128) and few.alone > 0.9 * 32 / 128
