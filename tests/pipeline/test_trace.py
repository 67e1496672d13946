"""A trace holds every station's work: loaded from its text as a viewer does it."""

import json
from collections import defaultdict

import pytest

from hetero_infer.bench.planner.schedules import RandomCosts, plan_of
from hetero_infer.pipeline.rehearsal import rehearse, station_spans
from hetero_infer.pipeline.trace import Span, chrome_trace
from hetero_infer.spec import Phase, Workload


def tracks_of(text: str) -> dict[str, list[dict]]:
    """Spans of each track, in the file's order; the format's own rules are checked on the way."""
    content = json.loads(text)
    names, tracks = {}, defaultdict(list)
    for event in content["traceEvents"]:
        if event["ph"] == "M":
            names[event["name"], event["pid"], event["tid"]] = event["args"]["name"]
        else:
            assert event["ph"] == "X" and event["cat"] in ("prefill", "decode")
            tracks[names["thread_name", event["pid"], event["tid"]]].append(event)
    assert names["process_name", 0, 0]
    return tracks


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_a_station_works_on_one_thing_at_a_time_for_as_long_as_its_costs_say(stages: int, seed: int) -> None:
    workload, sizes = Workload(7, 8, 4), (3, 2)
    costs, plan = RandomCosts(seed, stages), plan_of(stages, workload, *sizes)
    timeline = rehearse(costs, plan)
    tracks = tracks_of(chrome_trace(station_spans(timeline, plan, ["device"] * stages), "simulated"))

    passes = [(Phase.PREFILL, size, 0) for size in (3, 3, 1)]
    passes += [(Phase.DECODE, size, 8 + step) for step in range(3) for size in (2, 2, 2, 1)]
    busy_s = {f"stage {j}: device": sum(costs.compute_s(j, *each) for each in passes) for j in range(stages)}
    sends = [(phase, size) for phase, size, _ in passes]
    busy_s |= {f"link {j} to {j + 1}": sum(costs.send_s(j, *each) for each in sends) for j in range(stages - 1)}
    if stages > 1:
        busy_s[f"return {stages - 1} to 0"] = sum(costs.return_s(*each) for each in sends)
    assert tracks.keys() == busy_s.keys()
    for name, events in tracks.items():
        assert len(events) == len(passes)
        assert sum(event["dur"] for event in events) / 1e6 == pytest.approx(busy_s[name], rel=1e-6, abs=1e-7)
        ends = [0.0, *(round((event["ts"] + event["dur"]) * 1e3) for event in events)]  # whole nanoseconds
        assert all(end <= round(event["ts"] * 1e3) for end, event in zip(ends, events, strict=False)), name
    last_us = max(event["ts"] + event["dur"] for events in tracks.values() for event in events)
    assert last_us / 1e6 == pytest.approx(timeline.makespan_s, abs=1e-8)


def test_a_span_says_what_is_worked_on() -> None:
    costs, plan = RandomCosts(0, 2), plan_of(2, Workload(5, 8, 3), 2, 3)
    tracks = tracks_of(chrome_trace(station_spans(rehearse(costs, plan), plan, ["a", "b"]), "simulated"))
    assert list(tracks) == ["stage 0: a", "link 0 to 1", "stage 1: b", "return 1 to 0"]
    for events in tracks.values():
        assert [event["name"] for event in events] == ["P0", "P1", "P2", "D0", "D1", "D0", "D1"]
        assert [event["args"]["sequences"] for event in events] == [2, 2, 1, 3, 2, 3, 2]
        assert [event["args"].get("past_tokens") for event in events] == [None] * 3 + [8, 8, 9, 9]


def test_measured_spans_are_written_as_predicted_ones() -> None:
    spans = [Span("b", "D0", Phase.DECODE, 0.25, 0.5, {"on": "t4"}), Span("a", "P0", Phase.PREFILL, 0.0, 0.25)]
    tracks = tracks_of(chrome_trace(spans, "measured"))
    assert list(tracks) == ["a", "b"]
    assert (tracks["b"][0]["ts"], tracks["b"][0]["dur"], tracks["b"][0]["args"]) == (250000, 250000, {"on": "t4"})
