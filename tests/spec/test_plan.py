"""plan.json, where the two wings meet: it says the same after writing and reading, and a broken one is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hetero_infer.spec import (
    UNQUANTISED,
    Choice,
    Device,
    InputError,
    Plan,
    PlanEstimate,
    QualityPlan,
    SolverReport,
    StagePlan,
    Workload,
)
from hetero_infer.spec.plan import LayerFit, micro_batch_ranges, num_micro_batches

FOUR, THREE = Choice(4, 64), Choice(3, 32)
DEVICES = (Device("a", 0, "t4", 2**34), Device("b", 0, "cpu", 2**30, 2.5, 4), Device("b", 1, "cpu", 2**30))
PLAN = Plan(
    model={"path": "m", "digest": "0123", "num_hidden_layers": 4},
    devices=DEVICES,
    workload=Workload(7, 20, 5),
    stages=(StagePlan("a:0", (UNQUANTISED, FOUR, FOUR, THREE)), StagePlan("b:1", (UNQUANTISED, UNQUANTISED))),
    prefill_micro_batch_size=3,
    decode_micro_batch_size=2,
)
FIT_WITHOUT_HOLDOUT = ("decoder", "16", "decode", "interpolation")
FULL = replace(
    PLAN,
    estimate=PlanEstimate(
        1.5,
        2.25,
        9.3,
        3.7,
        stage_seconds=({"prefill": 0.1}, {"prefill": 0.2}),
        memory_bytes=({"weights": 5}, {"weights": 6}),
        source={"t4": "measured", "cpu": "measured"},
        holdout_mean={"t4": 0.02},
        fits=(LayerFit("t4", "decoder", "4g64", "prefill", "regression", 0.02), LayerFit("cpu", *FIT_WITHOUT_HOLDOUT)),
    ),
    quality=QualityPlan(0.05, 0.0488, 0.03, "nats", 0.01, "ef01"),
    solver=SolverReport("HiGHS 1.15", "optimal", 3.7, 3.7, 0.0, 1.2),
    inputs_digest="abcd",
)


def edited(tmp_path: Path, edit: object = None, plan: Plan = FULL) -> Path:
    path = tmp_path / "plan.json"
    plan.save(path)
    if edit:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
    return path


NOT_MEASURED = replace(FULL, quality=replace(FULL.quality, measured=None, held_out=""))


@pytest.mark.parametrize("plan", [PLAN, NOT_MEASURED, FULL], ids=["bare", "not measured", "full"])
def test_a_plan_is_the_same_after_writing_and_reading(plan: Plan, tmp_path: Path) -> None:
    path = edited(tmp_path, plan=plan)
    assert Plan.load(path) == plan
    assert json.loads(path.read_text()) == json.loads(json.dumps(plan.to_json()))


def test_a_layer_is_one_line_that_a_person_can_edit(tmp_path: Path) -> None:
    path = edited(tmp_path)
    lines = path.read_text().splitlines()
    layers = [line.strip().rstrip(",") for line in lines if '"bits"' in line]
    assert layers[1] == '{"bits": 4, "group_size": 64, "activations": "float"}'
    assert len(layers) == 6
    path.write_text(path.read_text().replace(layers[1], '{"bits": 8}', 1))
    assert Plan.load(path).layer_choices[1] == Choice(8, 64)


def test_a_plan_from_before_held_out_text_was_measured_is_read(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda content: [content["quality"].pop(key) for key in ("measured", "held_out")])
    assert Plan.load(path) == NOT_MEASURED


@pytest.mark.parametrize(("measured", "is_broken"), [(None, False), (-0.01, False), (0.0487, False), (0.0488, True)])
def test_a_bound_is_broken_by_what_was_measured_above_it(measured: float | None, is_broken: bool) -> None:
    assert replace(FULL.quality, measured=measured).is_broken == is_broken, "log(1.05) = 0.04879…"


def test_a_fit_is_one_line_too(tmp_path: Path) -> None:
    lines = [line.strip().rstrip(",") for line in edited(tmp_path).read_text().splitlines() if '"method"' in line]
    assert [json.loads(line)["method"] for line in lines] == ["regression", "interpolation"]


def test_it_says_which_layers_and_where() -> None:
    assert PLAN.bounds == (0, 4, 6)
    assert [PLAN.decoder_range(stage) for stage in (0, 1)] == [range(0, 3), range(3, 4)]
    assert PLAN.decoder_choices == (FOUR, FOUR, THREE, UNQUANTISED)
    assert PLAN.device_of(1) == DEVICES[2]
    assert FULL.estimate.total_s == 3.75


def test_its_fingerprint_is_that_of_the_bits_wherever_the_layers_stand() -> None:
    alone = replace(PLAN, stages=(StagePlan("b:0", PLAN.layer_choices),), decode_micro_batch_size=7)
    assert alone.fingerprint == PLAN.fingerprint
    other_bits = StagePlan("b:0", (*PLAN.layer_choices[:3], FOUR, *PLAN.layer_choices[4:]))
    assert replace(alone, stages=(other_bits,)).fingerprint != PLAN.fingerprint
    assert replace(PLAN, model={**PLAN.model, "digest": "4567"}).fingerprint != PLAN.fingerprint


def test_stages_of_the_embedding_or_the_head_alone_have_no_decoder() -> None:
    stages = (StagePlan("a:0", (UNQUANTISED,)), StagePlan("b:0", (FOUR,) * 4), StagePlan("b:1", (UNQUANTISED,)))
    plan = replace(PLAN, stages=stages)
    assert [list(plan.decoder_range(stage)) for stage in range(3)] == [[], [0, 1, 2, 3], []]


@pytest.mark.parametrize(
    ("batch", "size", "expected"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 2, [2]), (3, 1, [1, 1, 1])]
)
def test_micro_batches_cover_the_batch_in_order(batch: int, size: int, expected: list[int]) -> None:
    ranges = micro_batch_ranges(batch, size)
    assert [len(part) for part in ranges] == expected and num_micro_batches(batch, size) == len(expected)
    assert [sequence for part in ranges for sequence in part] == list(range(batch))


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda plan: plan.pop("workload"), "workload is missing"),
        (lambda plan: plan.update(format=2), "format 2, this version reads format 1"),
        (lambda plan: plan.pop("format"), "format None"),
        (lambda plan: plan["pipelines"][0]["stages"][0]["layers"].pop(), "its stages have 5 layers, the model has 4"),
        (lambda plan: plan["pipelines"][0]["stages"][1].update(device="c:0"), "stands on c:0, which is no device"),
        (lambda plan: plan["pipelines"][0]["stages"][1].update(device="a:0"), "a:0 has two stages"),
        (lambda plan: plan["pipelines"][0]["stages"][1].update(layers=[]), "the stage on b:1 has no layer"),
        (lambda plan: plan["pipelines"][0]["prefill"].update(micro_batch_size=8), "= 8 for a batch of 7"),
        (lambda plan: plan["pipelines"][0]["decode"].update(micro_batch_size=0), "= 0 for a batch of 7"),
        (lambda plan: plan["pipelines"].append({}), "it has 2 pipelines; one is wanted here"),
        (lambda plan: plan["pipelines"][0]["stages"][0]["layers"][1].update(bits=5), "bits = 5: choose from"),
        (
            lambda plan: plan["pipelines"][0]["stages"][0]["layers"][1].update(bits="4"),
            "layers[1]: bits = '4' is not a whole number",
        ),
        (
            lambda plan: plan["pipelines"][0]["stages"][0]["layers"][1].update(bit=4),
            "layers[1]: bit is not known; did you mean bits?",
        ),
        (
            lambda plan: plan["workload"].update(prompts=3),
            "prompts is not known; did you mean prompt_tokens?",
        ),
        (lambda plan: plan["workload"].update(batch_size="7"), "workload: batch_size = '7' is not a whole number"),
        (lambda plan: plan["workload"].update(new_tokens=5.5), "workload: new_tokens = 5.5 is not a whole number"),
        (
            lambda plan: plan["pipelines"][0]["decode"].update(micro_batch_size=1.5),
            "micro_batch_size = 1.5 is not a",
        ),
        (lambda plan: plan["cluster"][0].pop("type"), "cluster[0]: type is missing"),
        (lambda plan: plan["cluster"][0].update(name="a"), "cluster[0]: name = 'a' does not read 'host:slot'"),
        (lambda plan: plan["estimate"].pop("prefill_s"), "prefill_s"),
    ],
)
def test_a_plan_edited_into_nonsense_is_refused(edit: object, named: str, tmp_path: Path) -> None:
    path = edited(tmp_path, edit)
    with pytest.raises(InputError) as error:
        Plan.load(path)
    assert named in str(error.value)


def test_an_estimate_of_another_number_of_stages_is_not_read(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda plan: plan["estimate"]["memory_bytes"].pop())
    assert Plan.load(path) == replace(FULL, estimate=None)


@pytest.mark.parametrize(
    ("text", "named"), [("", "it is empty"), ("[1]", "expected a JSON object"), ('{"format": 1', "not JSON")]
)
def test_a_file_that_is_no_plan_is_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"plan {path}: {named}"):
        Plan.load(path)
