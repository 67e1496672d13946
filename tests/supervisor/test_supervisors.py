"""Several supervisors as the launcher starts them, with a worker that needs no model."""

import json
import os
import signal
import socket
import time

import httpx
import pytest
from running import RunFolder, make_devices, make_fleet, make_plan, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]
HANGING = [[1, 2], [99]]  # the second never ends
DEAD_WITHIN_S = 10


def test_a_batch_is_answered_in_order(run_folder: RunFolder) -> None:
    prompts = [[n, n + 1, n + 2] for n in range(1, 12)]
    run_folder.start_supervisors([*run_folder.batch(*prompts), "--summary", f"{run_folder.path}/summary.json"])
    assert run_folder.wait() == [0, 0, 0], run_folder.said()
    assert run_folder.answers == [prompt[::-1] for prompt in prompts]
    assert (run_folder.path / "quantised").read_text() == "localhost:0,localhost:1,localhost:2\n"
    summary = json.loads((run_folder.path / "summary.json").read_text())
    counts = {"requests": 11, "failed": 0, "prompt_tokens": 33, "new_tokens": 33}
    seconds = {"prefill_s": 3 * 0.5, "decode_s": 3 * 0.25}
    only = {"requests": 11, "prompt_tokens": 33, "new_tokens": 33, **seconds}
    assert summary == {**counts, **seconds, "replicas": [only]}
    assert not (run_folder.path / "out.jsonl.part").exists()


def test_a_stop_string_cancels_the_rest_of_its_request_on_stage_0_wherever_it_stands(run_folder: RunFolder) -> None:
    words = {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(100)}, "unk_token": "w0"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    tokenizer = parts | {"version": "1.0", "added_tokens": [], "model": words}
    (run_folder.path / "tiny" / "tokenizer.json").write_text(json.dumps(tokenizer))
    run_folder.set_plan(make_plan(make_devices(3), ["localhost:1", "localhost:2"]))
    run_folder.start_supervisors(run_folder.batch([98, 5, 6], stop="w5"))
    assert run_folder.wait() == [0, 0, 0], run_folder.said()
    assert run_folder.answers == [[6, 5]]


def test_a_worker_has_its_place_among_the_workers_and_nothing_of_the_launcher(run_folder: RunFolder) -> None:
    run_folder.set_plan(make_plan(make_devices(3), ["localhost:1", "localhost:2"]))
    run_folder.start_supervisors(run_folder.batch([1, 2]))
    assert run_folder.wait() == [0, 0, 0], run_folder.said()
    assert run_folder.answers == [[2, 1]]
    environment = run_folder.worker(slot=2)["environment"]
    wanted = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "2", "OMP_NUM_THREADS": "3", "MASTER_ADDR": "127.0.0.1"}
    wanted |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert wanted.items() <= environment.items()
    assert environment["MASTER_PORT"] == run_folder.worker(slot=1)["environment"]["MASTER_PORT"]
    assert not (run_folder.path / "worker-localhost:0.json").exists()


@pytest.fixture
def replicas(run_folder: RunFolder) -> RunFolder:
    """Two of two stages each on five slots; the middle one is in neither."""
    run_folder.set_hosts("localhost slots=5 # gpu=cpu memory=1GiB")
    names = [["localhost:4", "localhost:0"], ["localhost:1", "localhost:3"]]
    run_folder.set_plan(make_fleet(make_devices(5), *names))
    return run_folder


def test_replicas_are_worlds_of_their_own_and_share_a_batch(replicas: RunFolder) -> None:
    prompts = [[n, n + 1, n + 2] for n in range(1, 24)]
    summary = replicas.path / "summary.json"
    replicas.start_supervisors([*replicas.batch(*prompts), "--summary", str(summary)], world_size=5)
    assert replicas.wait() == [0] * 5, replicas.said()
    assert replicas.answers == [prompt[::-1] for prompt in prompts]
    served = json.loads(summary.read_text())["replicas"]
    assert len(served) == 2 and sum(replica["requests"] for replica in served) == len(prompts)
    assert min(replica["requests"] for replica in served) > 0
    places = {slot: replicas.worker(slot)["environment"] for slot in (4, 0, 1, 3)}
    assert [(place["RANK"], place["WORLD_SIZE"]) for place in places.values()] == [("0", "2"), ("1", "2")] * 2
    ports = [place["MASTER_PORT"] for place in places.values()]
    assert ports[0] == ports[1] != ports[2] == ports[3]
    assert not (replicas.path / "worker-localhost:2.json").exists()
    assert (replicas.path / "quantised").read_text() == "localhost:0,localhost:1,localhost:3,localhost:4\n"


def test_a_worker_of_any_replica_that_dies_ends_the_run_and_is_named(replicas: RunFolder) -> None:
    replicas.start_supervisors(replicas.batch(*HANGING), world_size=5)
    replicas.wait_for_first_answer()
    pid = replicas.worker(slot=3)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert replicas.wait(DEAD_WITHIN_S) == [1] * 5
    assert f"replica 1, stage 1 on localhost:3 (host {os.uname().nodename}, pid {pid})" in replicas.said()


def test_one_supervisor_started_by_hand_is_a_whole_run(run_folder: RunFolder) -> None:
    run_folder.set_hosts("localhost slots=1 # gpu=cpu memory=1GiB")
    run_folder.set_plan(make_plan(make_devices(1), ["localhost:0"]))
    run_folder.start_supervisors(run_folder.batch([5, 6, 7]), world_size=1)
    assert run_folder.wait() == [0], run_folder.said()
    assert run_folder.answers == [[7, 6, 5]]


@pytest.mark.parametrize(
    ("number", "what"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "silent for 6 s")]
)
def test_a_worker_that_dies_or_stops_ends_the_run_and_is_named(
    run_folder: RunFolder, number: signal.Signals, what: str
) -> None:
    run_folder.start_supervisors(run_folder.batch(*HANGING))
    run_folder.wait_for_first_answer()
    pid = run_folder.worker(slot=1)["pid"]
    os.kill(pid, number)
    assert run_folder.wait(DEAD_WITHIN_S) == [1, 1, 1]
    lines = [line for line in run_folder.said().splitlines() if "stage" in line and "plan" not in line]
    assert len(lines) == 1
    assert "stage 1 on localhost:1" in lines[0] and f"pid {pid}" in lines[0] and what in lines[0]


def test_the_loss_of_a_supervisor_ends_the_run_and_is_named(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch(*HANGING))
    run_folder.worker(slot=2)
    run_folder.processes[2].kill()
    assert run_folder.wait(DEAD_WITHIN_S) == [1, 1, -9]
    assert f"stage 2 on localhost:2 (host {os.uname().nodename})" in run_folder.said()
    assert f"supervisor (pid {run_folder.processes[2].pid}) is gone" in run_folder.said()


def test_a_supervisor_that_dies_takes_even_a_stopped_worker_along(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch(*HANGING))
    os.kill(run_folder.worker(slot=2)["pid"], signal.SIGSTOP)
    run_folder.processes[2].kill()
    assert run_folder.wait(DEAD_WITHIN_S) == [1, 1, -9]


def test_a_supervisor_that_is_stopped_ends_the_run_and_is_named(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch(*HANGING))
    run_folder.wait_for_first_answer()
    stopped = run_folder.processes.pop()
    stopped.send_signal(signal.SIGSTOP)
    wait_until(lambda: all(p.poll() == 1 for p in run_folder.processes), DEAD_WITHIN_S, run_folder.said)
    assert f"supervisor (pid {stopped.pid}) is silent for 6 s" in run_folder.said()
    assert "Traceback" not in run_folder.said()
    stopped.kill()  # as the launcher does
    stopped.wait()
    run_folder.wait()


def test_the_loss_of_rank_0_ends_the_others(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch(*HANGING))
    run_folder.worker(slot=2)
    run_folder.processes[0].kill()
    assert run_folder.wait(DEAD_WITHIN_S) == [-9, 1, 1]
    assert "lost rank 0" in run_folder.said()


def test_no_feasible_plan_is_exit_code_3_everywhere(run_folder: RunFolder) -> None:
    (run_folder.path / "prepared-plan.json").unlink()
    run_folder.start_supervisors(run_folder.batch([1]))
    assert run_folder.wait() == [3, 3, 3]
    assert "no plan meets every constraint" in run_folder.said()


def test_hosts_that_are_not_the_plans_are_refused(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch([1]), world_size=2)
    assert run_folder.wait() == [2, 2]
    assert f"localhost: 3, those that joined are {os.uname().nodename}: 2" in run_folder.said()


def test_a_rank_that_does_not_join_is_named(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch([1]), ranks=[0, 2], FAKE_JOIN_S="3")
    assert run_folder.wait() == [1, 1]
    assert "rank 1 (localhost) of 3 did not join within 3 s; joined: 0 (" in run_folder.said()


def test_a_rank_that_finds_no_rank_0_says_where_it_looked(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch([1]), ranks=[1], FAKE_JOIN_S="1")
    assert run_folder.wait() == [1]
    assert "rank 0 did not answer at 127.0.0.1:" in run_folder.said()


def test_other_versions_are_refused(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch([1]), ranks=[0, 1])
    run_folder.start_supervisors(run_folder.batch([1]), ranks=[2], FAKE_VERSION="9.9")
    assert run_folder.wait() == [2, 2, 2]
    assert "has hetero-infer 9.9, rank 0 has" in run_folder.said()


def test_a_signal_while_planning_ends_the_planner_too(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch([1]), FAKE_PLANNING_S="60")
    wait_until(lambda: "planning" in run_folder.said(), 20, run_folder.said)
    run_folder.processes[1].terminate()
    assert run_folder.wait(DEAD_WITHIN_S) == [75, 75, 75]
    assert "Traceback" not in run_folder.said()


def test_a_rank_that_joins_twice_is_refused_and_the_run_goes_on(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch(*HANGING), ranks=[0, 1, 1, 2])
    wait_until(lambda: "joined already" in run_folder.said(), 20, run_folder.said)
    run_folder.worker(slot=2)
    run_folder.processes[0].terminate()
    assert sorted(run_folder.wait()) == [2, 75, 75, 75]


def test_an_interrupted_batch_says_that_it_is_not_finished(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(run_folder.batch(*HANGING))
    run_folder.worker(slot=2)
    for process in run_folder.processes * 2:  # a launcher signals all, and a person presses Ctrl-C again
        process.send_signal(signal.SIGINT)
    assert run_folder.wait(DEAD_WITHIN_S) == [75, 75, 75]
    assert "Traceback" not in run_folder.said()
    assert not (run_folder.path / "out.jsonl").exists()


def test_a_server_answers_several_at_once_and_leaves_on_ctrl_c(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(["serve", "-c", str(run_folder.config)])
    url = f"http://127.0.0.1:{run_folder.port}"
    wait_until(lambda: f"ready on {url}" in run_folder.said(), 20, run_folder.said)
    with httpx.Client(base_url=url, timeout=10) as client:
        assert client.get("/health").status_code == 200
        answer = client.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 2}).json()
        assert answer["choices"][0]["token_ids"] == [3, 2]
        assert client.post("/v1/completions", json={"prompt": [1], "max_tokens": 99}).status_code == 400
    began = time.monotonic()
    run_folder.processes[0].send_signal(signal.SIGINT)
    assert run_folder.wait(DEAD_WITHIN_S) == [0, 0, 0]
    assert time.monotonic() - began < 5
    assert "Traceback" not in run_folder.said()


def test_a_port_in_use_is_said_before_anything_is_planned(run_folder: RunFolder) -> None:
    with socket.create_server(("127.0.0.1", run_folder.port)):
        run_folder.start_supervisors(["serve", "-c", str(run_folder.config)])
        assert run_folder.wait() == [2, 2, 2]
    assert f"cannot serve on 127.0.0.1:{run_folder.port}" in run_folder.said()
    assert not (run_folder.path / "out" / "plan.json").exists()


def test_a_survey_names_the_hosts_that_did_not_join(run_folder: RunFolder) -> None:
    run_folder.set_hosts("localhost slots=1 # gpu=cpu memory=1GiB\nnode-b slots=2 # gpu=t4")
    run_folder.start_supervisors(["measure", "-c", str(run_folder.config)], ranks=[0], FAKE_JOIN_S="2")
    assert run_folder.wait() == [1]
    assert "rank 1 (node-b), 2 (node-b) of 3 did not join within 2 s" in run_folder.said()


def test_a_survey_of_other_hosts_than_the_configs_is_refused(run_folder: RunFolder) -> None:
    run_folder.start_supervisors(["measure", "-c", str(run_folder.config)], world_size=2)
    assert run_folder.wait() == [2, 2]
    assert "localhost: 3, those that joined are" in run_folder.said()
