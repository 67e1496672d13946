"""Several pipelines in one plan.json: each with its share of the batch, its devices and its promises."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hetero_infer.spec import (
    UNQUANTISED,
    Choice,
    Device,
    Fleet,
    InputError,
    Plan,
    PlanEstimate,
    QualityPlan,
    SolverReport,
    StagePlan,
    Workload,
)

FOUR = Choice(4, 64)
DEVICES = tuple(Device("a", slot, "t4", 2**34) for slot in range(5))
SOLVER = SolverReport("ours", "optimal", 3.7, 3.6, 0.03, 1.2)


def replica(batch_size: int, *devices: str) -> Plan:
    layers = [(FOUR,) * 4, (UNQUANTISED,) * 2] if len(devices) == 2 else [(FOUR,) * 6]
    return Plan(
        model={"path": "m", "digest": "0123", "num_hidden_layers": 4},
        devices=tuple(device for device in DEVICES if device.name in devices),
        workload=Workload(batch_size, 20, 5),
        stages=tuple(StagePlan(name, of_stage) for name, of_stage in zip(devices, layers, strict=True)),
        prefill_micro_batch_size=1,
        decode_micro_batch_size=batch_size,
        estimate=PlanEstimate(1.5, 2.25, batch_size, 3.7, ({},) * len(devices), ({},) * len(devices)),
        quality=QualityPlan(0.05, 0.0488, batch_size / 100, "nats"),
        solver=replace(SOLVER, objective=batch_size),
    )


TWO = Fleet.over(DEVICES, [replica(3, "a:3", "a:0"), replica(2, "a:1")], SOLVER)
ONE = Fleet((TWO.replicas[0],))


def saved(tmp_path: Path, edit: object = None, fleet: Fleet = TWO) -> Path:
    path = tmp_path / "plan.json"
    fleet.save(path)
    if edit:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("fleet", [ONE, TWO, replace(TWO, solver=None)], ids=["one", "two", "unsure"])
def test_a_fleet_is_the_same_after_writing_and_reading(fleet: Fleet, tmp_path: Path) -> None:
    assert Fleet.load(saved(tmp_path, fleet=fleet)) == fleet


def test_a_fleet_of_one_is_a_plan(tmp_path: Path) -> None:
    assert Plan.load(saved(tmp_path, fleet=ONE)) == ONE.replicas[0]
    with pytest.raises(InputError, match="it has 2 pipelines; one is wanted here"):
        Plan.load(saved(tmp_path))


def test_replicas_share_the_batch_and_know_all_devices() -> None:
    assert TWO.workload == Workload(5, 20, 5)
    assert all(one.devices == TWO.devices == DEVICES for one in TWO.replicas)
    assert TWO.stage_on("a:0") == (TWO.replicas[0], 1) and TWO.stage_on("a:1") == (TWO.replicas[1], 0)


def test_it_shows_when_a_hand_changed_stages_or_shares(tmp_path: Path) -> None:
    for fleet in (ONE, TWO):
        made = fleet.made_from("0123")
        assert made.inputs_digest == "0123" and not made.is_edited
        assert not Fleet.load(saved(tmp_path, fleet=made)).is_edited

    def give_the_other_one_more(plan: dict) -> None:
        plan["pipelines"][0]["batch_size"], plan["pipelines"][1]["batch_size"] = 2, 3
        plan["pipelines"][0]["decode"]["micro_batch_size"] = 2

    made = TWO.made_from("0123")
    assert Fleet.load(saved(tmp_path, give_the_other_one_more, made)).is_edited
    turned = saved(tmp_path, lambda plan: plan["pipelines"][1]["stages"][0].update(device="a:4"), made)
    assert Fleet.load(turned).is_edited


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda plan: plan["pipelines"].append({}), "pipelines[2]: batch_size is missing"),
        (lambda plan: plan["pipelines"][1].pop("batch_size"), "pipelines[1]: batch_size is missing"),
        (lambda plan: plan["pipelines"][1].update(batch_size=4), "add up to 7, its workload's is 5"),
        (lambda plan: plan["pipelines"][1].update(batch_size=0), "pipelines[1]: workload: batch_size = 0"),
        (lambda plan: plan["pipelines"][1]["stages"][0].update(device="a:3"), "a:3 is in two pipelines"),
        (lambda plan: plan["pipelines"][1]["stages"][0].update(device="b:0"), "pipelines[1]: a stage stands on b:0"),
        (
            lambda plan: plan["pipelines"][1]["stages"][0]["layers"].pop(),
            "pipelines[1]: its stages have 5 layers, the model has 4",
        ),
        (lambda plan: plan["pipelines"][1]["estimate"].pop("decode_s"), "pipelines[1], estimate: decode_s is missing"),
        (lambda plan: plan["cluster"][1].pop("type"), "plan.json, cluster[1]: type is missing"),
        (lambda plan: plan["solver"].pop("gap"), "plan.json, solver: gap is missing"),
        (lambda plan: plan.update(pipelines=[]), "it has 0 pipelines"),
    ],
)
def test_a_fleet_edited_into_nonsense_is_refused(edit: object, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        Fleet.load(saved(tmp_path, edit))
    assert named in str(error.value)
