"""What real requests are like: their longest, their average, how fast they come."""

import math
import os
from pathlib import Path

import pytest

from hetero_infer.spec import InputError, Workload
from hetero_infer.spec.requests import RequestLengths, average, longest, read_trace, requests_per_s

HEADING = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(path: Path, *rows: str) -> Path:
    path.write_text(HEADING + "".join(row + "\n" for row in rows))
    return path


def test_a_trace_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    rows = ("2023-11-16 18:15:50.9951690,396,109", "2023-11-16 18:15:46.6805900,374,44")
    first, second = read_trace(written(tmp_path / "trace.csv", *rows))
    assert (first.prompt_tokens, first.new_tokens, first.arrived_s) == (374, 44, 0.0)
    assert (second.prompt_tokens, second.new_tokens) == (396, 109)
    assert second.arrived_s == pytest.approx(4.314579, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (("2023-11-16 18:15:46,374,44",), "1 requests make no stream"),
        (("yesterday,374,44", "2023-11-16 18:15:46,1,1"), "row 1: TIMESTAMP = 'yesterday' is no time"),
        (("2023-11-16 18:15:46,1,1", "2023-11-16 18:15:47,0,44"), "row 2: ContextTokens and GeneratedTokens are at"),
        (("2023-11-16 18:15:46,many,1",), "row 1: ContextTokens = 'many' is not a whole number"),
    ],
)
def test_a_trace_that_is_none_is_refused(rows: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read_trace(written(tmp_path / "trace.csv", *rows))


def test_a_plan_for_the_longest_admits_all_and_no_longer_ones() -> None:
    requests = [RequestLengths(100, 5), RequestLengths(10, 80), RequestLengths(60, 60)]
    most = longest(requests, 8)
    assert most == Workload(8, 100, 20) and most.cache_tokens == max(request.cache_tokens for request in requests)
    assert all(request.fits(most) for request in requests)
    assert not RequestLengths(101, 1).fits(most) and not RequestLengths(60, 61).fits(most)
    assert average(requests, 8) == Workload(8, 57, 49)


def test_rates_are_of_the_whole_trace_and_of_its_busiest_minute() -> None:
    steady = [RequestLengths(1, 1, second) for second in range(0, 601, 2)]
    burst = [RequestLengths(1, 1, 300.0 + second / 2) for second in range(60)]
    mean, peak = requests_per_s(sorted([*steady, *burst], key=lambda request: request.arrived_s))
    assert mean == pytest.approx(360 / 600) and peak == pytest.approx(90 / 60)
    assert requests_per_s([RequestLengths(1, 1), RequestLengths(1, 1)]) == (math.inf, math.inf)


def test_a_public_trace_is_read() -> None:
    path = Path(os.environ.get("HETERO_INFER_SHARED", "../shared")) / "data/traces/azure_conv_2023.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    requests = read_trace(path)
    mean, peak = requests_per_s(requests)
    assert len(requests) == 19366 and average(requests, 32) == Workload(32, 1155, 212)
    assert 5 < mean < 6 and mean < peak < 12
