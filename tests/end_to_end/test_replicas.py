"""Two replicas on four slots of this machine: process groups of their own, one batch file and one server over both."""

import json
import os
import re
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hetero_infer.spec import UNQUANTISED, Choice, Fleet
from tests.end_to_end.running import DEEPSPEED, Run
from tests.prepared import DECODERS, LIMITS, PROMPTS, RunFiles, TinyModel, read_answers, read_bodies, write_batch
from tests.supervisor.running import free_port, wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not DEEPSPEED.exists(), reason="deepspeed is not installed"),
]
HOSTFILE = "localhost slots=4  # gpu=cpu slowdown=1,1.5,2,1 memory=32MiB threads=1\n"
OTHER_DECODERS = (UNQUANTISED, Choice(4, 32), Choice(3, 32), Choice(8, 32))
STAGES = ({"localhost:3": 4, "localhost:0": 2}, {"localhost:1": 1, "localhost:2": 5})


class Replicas:
    """Plans by hand of unlike bits and of the same, and what one process answers with the bits of each fingerprint."""

    def __init__(self, path: Path) -> None:
        self.model = TinyModel(path / "tiny")
        self.files: RunFiles = self.model.write_files(path, HOSTFILE, layers_per_stage=(2, 1, 1, 2))
        self.unlike = self._fleet(DECODERS, OTHER_DECODERS)
        self.alike = self._fleet(DECODERS, DECODERS)
        self.expected: dict[str, list[list[int]]] = {}
        for replica in self.unlike.replicas:
            self.model.quantise(self.files, replica.decoder_choices)
            answers = self.model.greedy(self.files.checkpoint, replica.decoder_choices)
            self.expected[replica.fingerprint] = answers

    def _fleet(self, *decoders: tuple[Choice, ...]) -> Fleet:
        """Shares of 3 and 1 of the batch of 4."""
        plans = zip(STAGES, decoders, (3, 1), strict=True)
        return Fleet(tuple(self.model.plan(self.files, *plan) for plan in plans))


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Replicas:
    return Replicas(tmp_path_factory.mktemp("replicas"))


def answer_batch(run: Run, replicas: Replicas, fleet: Fleet, **fields: object) -> dict[str, Any]:
    """Runs the batch file; returns the summary."""
    plan, summary = run.path / "plan.json", run.path / "summary.json"
    fleet.save(plan)
    given = ["-i", write_batch(run.path / "in.jsonl", **fields), "-o", run.path / "out.jsonl", "--summary", summary]
    run.under_deepspeed("launch/batch.py", replicas.files.hostfile, "-c", replicas.files.config, "--plan", plan, *given)
    assert run.wait(120) == 0, run.said()
    return json.loads(summary.read_text())


def test_each_prompt_is_answered_once_as_one_process_does_at_the_bits_of_its_replica(
    run: Run, replicas: Replicas
) -> None:
    summary = answer_batch(run, replicas, replicas.unlike)
    bodies = read_bodies(run.path / "out.jsonl")
    made_by = [body["system_fingerprint"] for body in bodies]
    tokens = [body["choices"][0]["token_ids"] for body in bodies]
    assert tokens == [replicas.expected[fingerprint][n] for n, fingerprint in enumerate(made_by)]
    assert any(len({str(each[n]) for each in replicas.expected.values()}) > 1 for n in range(len(PROMPTS)))
    assert [replica["requests"] for replica in summary["replicas"]] == [made_by.count(f) for f in replicas.expected]
    assert min(map(made_by.count, replicas.expected)) > 0
    held = re.findall(r"replica (\d), stage (\d) on (localhost:\d): at most \S+ MiB, budget 32\.0", run.said())
    assert held == [
        ("0", "0", "localhost:3"),
        ("0", "1", "localhost:0"),
        ("1", "0", "localhost:1"),
        ("1", "1", "localhost:2"),
    ]


def test_replicas_of_the_same_bits_say_the_same_to_the_same_seed(run: Run, replicas: Replicas) -> None:
    asked = {"prompts": [PROMPTS[1]] * 10, "max_tokens": [24] * 10, "temperature": 1.5, "seed": 7}
    summary = answer_batch(run, replicas, replicas.alike, **asked)
    assert min(replica["requests"] for replica in summary["replicas"]) > 0
    answers = read_answers(run.path / "out.jsonl")
    assert answers == answers[:1] * 10 and answers[0] != replicas.expected[replicas.alike.replicas[0].fingerprint][1]


def test_the_server_asks_both_until_a_worker_of_one_is_killed(run: Run, replicas: Replicas) -> None:
    plan, config, port = run.path / "plan.json", run.path / "serve.toml", free_port()
    replicas.unlike.save(plan)
    config.write_text(f"{replicas.files.config.read_text()}\n[server]\nport = {port}\n")
    run.under_deepspeed("launch/serve.py", replicas.files.hostfile, "-c", config, "--plan", plan)
    wait_until(lambda: "ready on http" in run.said(), 120, run.explain)

    def ask(number: int) -> str:
        """Returns which model answered, and as one process would."""
        body = json.dumps({"prompt": PROMPTS[number], "max_tokens": LIMITS[number]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["choices"][0]["token_ids"] == replicas.expected[answer["system_fingerprint"]][number]
        return answer["system_fingerprint"]

    with ThreadPoolExecutor(len(PROMPTS)) as callers:  # more than one replica takes at once
        assert set(callers.map(ask, range(len(PROMPTS)))) == set(replicas.expected)

    pid = run.worker_pid("localhost:2")
    os.kill(pid, signal.SIGKILL)
    assert run.wait(20) != 0
    named = rf"replica 1, stage 1 on localhost:2 \(host \S+, pid {pid}\): worker killed by SIGKILL"
    assert re.search(named, run.said()), run.said()
