"""The measuring worker's meeting with the others; tests/end_to_end/test_measure.py has the whole of it."""

from datetime import timedelta

import pytest

from hetero_infer.measure import worker
from hetero_infer.spec import HeteroInferError
from tests.supervisor.running import free_port


@pytest.mark.timeout(60)
def test_a_worker_that_reaches_nobody_says_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ANSWER_WITHIN", timedelta(seconds=1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(HeteroInferError, match=r"no way to all others by gloo and 127\.0\.0\.1:\d+ within 1 s"):
        worker.connect("gloo", rank=0, world_size=2)


def test_turns_are_taken_in_order_and_only_own_ones_waited_for() -> None:
    waited: list[list[str]] = []
    ended: list[str] = []

    class Store:
        def wait(self, keys: list[str], timeout: timedelta) -> None:
            waited.append(keys)

        def set(self, key: str, value: str) -> None:
            ended.append(key)

    turns = worker.Turns(Store())
    for is_mine, ends_it in [(True, False), (False, True), (True, True)]:
        with turns.next(is_mine, ends_it) as mine:
            assert mine is is_mine
    assert waited == [["turn 1"]], "the first waits for nobody"
    assert ended == ["turn 2"], "the second was another's, the first another's to end"
