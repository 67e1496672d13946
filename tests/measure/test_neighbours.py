"""Neighbours work while something is measured, and are gone afterwards."""

import subprocess

import pytest

from hetero_infer.measure import neighbours

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]


def test_neighbours_are_gone_after_the_block_even_if_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def remember(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(start(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(neighbours.subprocess, "Popen", remember)
    with pytest.raises(RuntimeError, match="measured badly"), neighbours.working_neighbours(2):
        assert len(started) == 2 and all(process.poll() is None for process in started)
        raise RuntimeError("measured badly")
    assert all(process.poll() is not None for process in started)
