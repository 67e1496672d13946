"""The whole of it, as people start it: launchers, supervisors, real workers, a batch file, the server."""

import json
import os
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.measure.perplexity import measure_perplexity
from tests.end_to_end.conftest import Prepared
from tests.end_to_end.running import DEEPSPEED, MPIRUN, ROOT, Run
from tests.prepared import DECODERS, LIMITS, PROMPTS, read_answers, write_batch
from tests.supervisor.running import free_port, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(150)]
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED.exists(), reason="deepspeed is not installed")
needs_mpirun = pytest.mark.skipif(not MPIRUN, reason="there is no mpirun on this machine")
under_either_launcher = pytest.mark.parametrize(
    "launcher", [pytest.param("deepspeed", marks=needs_deepspeed), pytest.param("mpirun", marks=needs_mpirun)]
)
MIX = ROOT / "hostfiles" / "mix"


def start(
    run: Run, prepared: Prepared, launcher: str, script: str, *arguments: object, plan: Path | None = None
) -> None:
    arguments = ("-c", prepared.files.config, "--plan", plan or prepared.files.plan, *arguments)
    if launcher == "mpirun":
        run.under_mpirun(script, *arguments)
    else:
        run.under_deepspeed(script, prepared.files.hostfile, *arguments)


@under_either_launcher
def test_a_batch_has_the_answers_of_one_process_under_either_launcher(
    launcher: str, run: Run, prepared: Prepared
) -> None:
    lines = write_batch(run.path / "in.jsonl")
    summary = run.path / "summary.json"
    start(run, prepared, launcher, "launch/batch.py", "-i", lines, "-o", run.path / "out.jsonl", "--summary", summary)
    assert run.wait(90) == 0, run.said()
    assert read_answers(run.path / "out.jsonl") == prepared.expected
    assert json.loads(summary.read_text())["new_tokens"] == sum(map(len, prepared.expected))
    held = re.findall(r"stage (\d) on localhost:\d: at most (\S+) MiB, budget 32\.0", run.said())
    assert [stage for stage, _ in held] == ["0", "1", "2"] and all(0 < float(peak) < 32 for _, peak in held), held


@under_either_launcher
def test_a_plan_may_leave_a_slot_out_and_turn_the_others_round(launcher: str, run: Run, prepared: Prepared) -> None:
    plan = run.path / "turned.json"
    prepared.model.plan(prepared.files, {"localhost:2": 4, "localhost:0": 2}).save(plan)
    lines = write_batch(run.path / "in.jsonl")
    start(run, prepared, launcher, "launch/batch.py", "-i", lines, "-o", run.path / "out.jsonl", plan=plan)
    assert run.wait(90) == 0, run.said()
    assert read_answers(run.path / "out.jsonl") == prepared.expected
    assert re.findall(r"(stage \d on localhost:\d): at most", run.said()) == [
        "stage 0 on localhost:2",
        "stage 1 on localhost:0",
    ]


@needs_deepspeed
def test_a_killed_worker_takes_the_run_with_it_and_is_named(run: Run, prepared: Prepared) -> None:
    lines = write_batch(run.path / "in.jsonl", [[1, 2, 3]] * 4000, [24] * 4000)
    start(run, prepared, "deepspeed", "launch/batch.py", "-i", lines, "-o", run.path / "out.jsonl")
    part = run.path / "out.jsonl.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0, 90, run.explain)
    pid = run.worker_pid("localhost:1")
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(20) != 0
    assert time.monotonic() - killed <= 10
    named = rf"stage 1 on localhost:1 \(host \S+, pid {pid}\): worker killed by SIGKILL"
    assert re.search(named, run.said()), run.said()
    assert not (run.path / "out.jsonl").exists()


@needs_deepspeed
def test_the_server_answers_as_one_process_until_ctrl_c(run: Run, prepared: Prepared) -> None:
    port = free_port()
    config = run.path / "serve.toml"
    config.write_text(f"{prepared.files.config.read_text()}\n[server]\nport = {port}\n")
    run.under_deepspeed("launch/serve.py", prepared.files.hostfile, "-c", config, "--plan", prepared.files.plan)
    wait_until(lambda: "ready on http" in run.said(), 90, run.explain)

    def ask(path: str, body: dict | None = None) -> dict:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    assert ask("/health") == {"status": "ok"}
    assert [model["id"] for model in ask("/v1/models")["data"]] == ["tiny"]
    for prompt, limit, tokens in list(zip(PROMPTS, LIMITS, prepared.expected, strict=True))[:3]:
        answer = ask("/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": limit})
        assert answer["choices"][0]["token_ids"] == tokens
        assert answer["usage"]["completion_tokens"] == len(tokens)
    dark_night = {"prompt": "It was a dark night", "max_tokens": 15}
    whole = ask("/v1/completions", dark_night | {"logprobs": 2})["choices"][0]
    assert len(whole["logprobs"]["tokens"]) == len(whole["token_ids"]) == 15
    cut = ask("/v1/completions", dark_night | {"stop": whole["text"][10:12]})["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (whole["text"][: whole["text"].index(whole["text"][10:12])], "stop")
    assert cut["token_ids"] == whole["token_ids"][: len(cut["token_ids"])] != whole["token_ids"]
    assert ask("/v1/completions", dark_night)["choices"][0]["text"] == whole["text"]  # the cancelled one left no trace
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask("/v1/completions", {"prompt": [1] * 21})  # more than the plan has room for

    os.killpg(run.process.pid, signal.SIGINT)  # as Ctrl-C does
    run.wait(20)  # the exit code is the launcher's own
    assert f'File "{ROOT}/hetero_infer' not in run.said()  # an ordinary end: no traceback of ours


@needs_deepspeed
def test_a_text_has_the_perplexity_of_one_process(run: Run, prepared: Prepared) -> None:
    folder, text, summary = prepared.model.folder, run.path / "text.txt", run.path / "summary.json"
    text.write_text("It was a dark and stormy night in the café. " * 5)
    windows = ("--text", text, "--context", 20, "--stride", 9)
    start(run, prepared, "deepspeed", "launch/evaluate.py", *windows, "--summary", summary)
    assert run.wait(90) == 0, run.said()
    (found,) = json.loads(summary.read_text())["replicas"]
    model = single_process_model(folder, DECODERS, ShardStore.of_model(prepared.files.checkpoint, folder.digest))
    expected = measure_perplexity(model, folder, text, 20, 9).to_json()
    assert found.pop("text_digest") == expected.pop("text_digest")
    assert found == pytest.approx(expected, rel=1e-6)
    assert f"perplexity  {found['perplexity']:.4f}" in run.said()


@pytest.mark.skipif(not MIX.exists(), reason="hostfiles/mix is not there")
@pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh on this machine")
@needs_deepspeed
def test_the_hosts_of_the_readme_s_hostfile_are_named_when_they_cannot_be_reached(run: Run) -> None:
    """The README's first line, typed as it stands."""
    run.start([str(DEEPSPEED), "--hostfile", "hostfiles/mix", "launch/serve.py"])
    assert run.wait(60) != 0
    hosts = [line.split()[0] for line in MIX.read_text().splitlines() if line.split("#")[0].strip()]
    assert any(host in run.said() for host in hosts), run.said()
    assert "put-your-v100-host-into-hostfiles-mix was not reachable via ssh" in run.said()


def test_the_folder_of_a_run_tells_its_processes_from_others(run: Run, tmp_path: Path) -> None:
    """That nothing is left over would mean nothing if what is there were not seen."""
    run.start(["sleep", "30"])
    wait_until(lambda: any("sleep" in Path(f"/proc/{pid}/cmdline").read_text() for pid in run.left_over()), 5, run.said)
    run.process.kill()
    assert run.wait(5) == -signal.SIGKILL
