"""Batches over three hosts, each with its own name, address, sshd and disk, as people start them on the first one."""

import re
import shutil
from pathlib import Path

import pytest

from hetero_infer.spec import Fleet, Plan
from tests.hosts.conftest import Prepared, hostfile
from tests.hosts.running import FAKE, MPIRUN, ROOT, Run
from tests.prepared import RunFiles, read_answers
from tests.supervisor.running import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]
needs_mpirun = pytest.mark.skipif(not MPIRUN, reason="there is no mpirun on this machine")
STARTED_WITHIN_S = 150
DEAD_WITHIN_S = 10


def shards_of_hosts(run: Run, files: RunFiles) -> dict[str, set[tuple[int, str]]]:
    """What each host's disk has of quantised layers, as (layer, choice)."""
    found = {}
    for name, host in run.cluster.hosts.items():
        names = [path.name for path in host.path(files.checkpoint).glob("layer*")]
        found[name] = {(int(name[5:8]), name.split("-")[1]) for name in names}
    return found


def shards_of_stages(plan: Plan, hosts: list[str]) -> dict[str, set[tuple[int, str]]]:
    """What each host needs, and no more."""
    wanted: dict[str, set[tuple[int, str]]] = {host: set() for host in hosts}
    for stage in range(len(plan.stages)):
        for layer in plan.decoder_range(stage):
            if plan.decoder_choices[layer].is_quantised:
                wanted[plan.device_of(stage).host].add((layer, str(plan.decoder_choices[layer])))
    return wanted


def answers_of_one_process(run: Run, prepared: Prepared, files: RunFiles, plan: Plan, here: Path) -> list[list[int]]:
    """By the layers that the hosts quantised, brought together here."""
    for host in run.cluster.hosts.values():
        if host.path(files.checkpoint).exists():
            shutil.copytree(host.path(files.checkpoint), here, dirs_exist_ok=True)
    return prepared.model.greedy(here, plan.decoder_choices)


@needs_mpirun
def test_mpirun_over_three_hosts_answers_as_one_process(run: Run, prepared: Prepared) -> None:
    files = prepared.three
    run.under_mpirun(files, prepared.batch)
    assert run.wait(STARTED_WITHIN_S) == 0, run.said()
    assert read_answers(run.answers_file(files)) == prepared.model.greedy(files.checkpoint)


def test_deepspeed_over_hosts_of_unlike_slots_answers_as_one_process(
    run: Run, prepared: Prepared, tmp_path: Path
) -> None:
    files = prepared.four
    run.under_deepspeed(files, prepared.batch)
    assert run.wait(STARTED_WITHIN_S) == 0, run.said()
    plan = Plan.load(files.plan)
    assert shards_of_hosts(run, files) == shards_of_stages(plan, list(run.cluster.hosts))
    expected = answers_of_one_process(run, prepared, files, plan, tmp_path / "checkpoint")
    assert read_answers(run.answers_file(files)) == expected


def test_replicas_across_hosts_answer_as_one_process(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    """Neither of their first stages is on the host of rank 0, where both of the last ones are."""
    files = prepared.replicas
    run.under_deepspeed(files, prepared.batch)
    assert run.wait(STARTED_WITHIN_S) == 0, run.said()
    fleet, hosts = Fleet.load(files.plan), list(run.cluster.hosts)
    wanted = [shards_of_stages(replica, hosts) for replica in fleet.replicas]
    assert shards_of_hosts(run, files) == {host: set().union(*(its[host] for its in wanted)) for host in hosts}
    expected = answers_of_one_process(run, prepared, files, fleet.replicas[0], tmp_path / "checkpoint")
    assert read_answers(run.answers_file(files)) == expected
    assert re.findall(r"replica (\d) +[1-9]\d* requests", run.said()) == ["0", "1"], run.said()


def test_the_first_host_plans_for_all(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    files = prepared.unplanned
    run.under_deepspeed(files, prepared.batch, with_plan=False)
    assert run.wait(STARTED_WITHIN_S) == 0, run.said()
    plan = Plan.load(run.cluster.head.path(files.path / "plan.json"))
    assert {plan.device_of(stage).host for stage in range(len(plan.stages))} == set(run.cluster.hosts)
    assert all(choice.is_quantised for choice in plan.decoder_choices)
    assert plan.quality and plan.quality.measured is not None and "the bound holds" in run.said()
    wanted = shards_of_stages(plan, list(run.cluster.hosts))
    wanted[run.cluster.head.name] = set().union(*wanted.values())  # for the measurement
    assert shards_of_hosts(run, files) == wanted
    expected = answers_of_one_process(run, prepared, files, plan, tmp_path / "checkpoint")
    assert read_answers(run.answers_file(files)) == expected


def test_a_host_whose_network_is_gone_ends_the_run_everywhere_and_is_named(run: Run, prepared: Prepared) -> None:
    run.under_deepspeed(prepared.three, prepared.long_batch)
    run.wait_for_first_answer(prepared.three, STARTED_WITHIN_S)
    run.cluster.pull_cable(run.cluster.hosts["node-b"])
    run.wait_for_the_end_of_the_job(DEAD_WITHIN_S)
    assert run.wait(DEAD_WITHIN_S) != 0  # the launcher ends when ssh notices
    named = r"stage 1 on node-b:0 \(host node-b\): its supervisor \(pid \d+\) is silent for 6 s"
    assert re.search(named, run.said()), run.said()
    assert "Traceback" not in run.said()


@pytest.mark.parametrize("launcher", ["deepspeed", pytest.param("mpirun", marks=needs_mpirun)])
def test_a_host_that_loses_its_power_ends_the_run_everywhere_and_is_named(
    launcher: str, run: Run, prepared: Prepared
) -> None:
    start = run.under_mpirun if launcher == "mpirun" else run.under_deepspeed
    start(prepared.three, prepared.hanging_batch, FAKE)
    run.wait_for_first_answer(prepared.three, STARTED_WITHIN_S)
    run.cluster.hosts["node-c"].switch_off()
    assert run.wait(DEAD_WITHIN_S) != 0
    assert "stage 2 on node-c:0 (host node-c): its supervisor" in run.said(), run.said()


def test_hosts_in_another_order_are_refused_by_name(run: Run, prepared: Prepared) -> None:
    turned = run.cluster.head.path("/tmp/hostfile")
    turned.write_text(hostfile(1, 1, 1, names=("node-b", "node-a", "node-c")))
    run.under_deepspeed(prepared.three, prepared.batch, FAKE, hostfile=Path("/tmp/hostfile"))
    assert run.wait(STARTED_WITHIN_S) == 2, run.said()
    assert "node-b joined where the plan has node-a" in run.said()


def test_another_version_on_one_host_is_refused_by_name(run: Run, prepared: Prepared) -> None:
    package = run.cluster.hosts["node-c"].path(ROOT / "hetero_infer" / "__init__.py")
    package.write_text('__version__ = "9.9"\n')
    run.under_deepspeed(prepared.three, prepared.batch)
    assert run.wait(STARTED_WITHIN_S) == 2, run.said()
    assert re.search(r"rank 2 on node-c \(pid \d+\) has hetero-infer 9.9, rank 0 has", run.said()), run.said()


def test_a_host_that_does_not_join_is_named(run: Run, prepared: Prepared) -> None:
    """The limit of its patience travels in `.deepspeed_env`, as users' variables do."""
    run.cluster.head.path("/root/.deepspeed_env").write_text("FAKE_JOIN_S=8\n")
    run.cluster.pull_cable(run.cluster.hosts["node-c"])
    run.under_deepspeed(prepared.three, prepared.batch, FAKE)
    assert run.wait(STARTED_WITHIN_S) != 0
    assert "rank 2 (node-c) of 3 did not join within 8 s; joined: 0 (node-a), 1 (node-b)" in run.said(), run.said()


def test_a_master_address_that_others_cannot_reach_is_said(run: Run, prepared: Prepared) -> None:
    run.cluster.head.path("/root/.deepspeed_env").write_text("FAKE_JOIN_S=3\n")
    run.under_deepspeed(prepared.three, prepared.batch, FAKE, options=["--master_addr", "node-a"])
    assert run.wait(STARTED_WITHIN_S) == 2, run.said()
    assert "--master_addr node-a is 127.0.1.1 on node-a" in run.said()


def test_ctrl_c_on_the_first_host_ends_the_run_everywhere(run: Run, prepared: Prepared) -> None:
    run.under_deepspeed(prepared.three, prepared.hanging_batch, FAKE)
    run.wait_for_first_answer(prepared.three, STARTED_WITHIN_S)
    run.interrupt()
    assert run.wait(DEAD_WITHIN_S) != 0
    assert "Traceback" not in run.said()


def test_the_death_of_the_launcher_ends_the_run_everywhere(run: Run, prepared: Prepared) -> None:
    run.under_deepspeed(prepared.three, prepared.hanging_batch, FAKE)
    run.wait_for_first_answer(prepared.three, STARTED_WITHIN_S)
    run.kill_launcher()
    wait_until(lambda: not run.cluster.processes(), DEAD_WITHIN_S, run.explain)
