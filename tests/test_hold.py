"""The bound is held: what happens after quantising, when held-out text says that the table was wrong."""

import contextlib
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from hetero_infer import hold, prepare
from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.cli import main
from hetero_infer.hold import MOST_PLANS, until_held
from hetero_infer.measure.perplexity import measure_perplexity
from hetero_infer.spec import Choice, Fleet, InfeasibleError, Plan, RunConfig, SensitivityTable, StagePlan
from hetero_infer.spec.config import DEMO_MODEL
from tests.test_cli import one_line_of_error, profile_by_hand

THREE = Choice(3, 64)
OMEGA = 0.003  # nats per token: about what a layer of the demo model loses at 3 bits
CONFIG = """
[model]
path = "demo"
[cluster]
hostfile = "{path}/hostfile"
[workload]
batch_size = 4
prompt_tokens = 16
new_tokens = 8
[quality]
max_perplexity_increase = 0.02
text = "{path}/heldout.txt"
choices = [{{ bits = 3 }}, {{ bits = 16 }}]
calibration_windows = 2
[paths]
work = "{path}/out"
checkpoint = "{checkpoint}"
"""


class HeldRun:
    """The demo model on two devices, with a table that says each layer loses so much at 3 bits, which are faster."""

    def __init__(self, path: Path, omega: float, checkpoint: Path | None = None) -> None:
        self.path = path
        self.config_path = path / "run.toml"
        self.config_path.write_text(CONFIG.format(path=path, checkpoint=checkpoint or path / "checkpoint"))
        (path / "heldout.txt").write_text((DEMO_MODEL / "heldout.txt").read_text()[:6000])
        self.set_memory("64MiB")
        config, folder = self.config, ModelFolder(DEMO_MODEL)
        profile_by_hand(folder.spec, "demo", config.choices, bit_s=1e-3).save(config.profile)
        windows = CalibrationWindows.from_text(folder, config.calibration, 2)
        rows = ((omega, 0.0),) * folder.spec.num_hidden_layers
        SensitivityTable("variance", folder.digest, windows.digest, "nats per token", config.choices, rows).save(
            config.sensitivity
        )

    @property
    def config(self) -> RunConfig:
        return RunConfig.load(self.config_path)

    @property
    def plan(self) -> Plan:
        return Plan.load(self.config.plan)

    def set_memory(self, amount: str) -> None:
        (self.path / "hostfile").write_text(f"localhost slots=2  # gpu=cpu memory={amount} threads=1\n")

    def set(self, old: str, new: str) -> None:
        text = self.config_path.read_text()
        assert old in text
        self.config_path.write_text(text.replace(old, new))

    def __call__(self, *arguments: object) -> int:
        return main([*map(str, arguments), "-c", str(self.config_path)])


@pytest.fixture(scope="module")
def tightened(tmp_path_factory: pytest.TempPathFactory) -> tuple[HeldRun, list[str]]:
    """A run whose table said that layers lose a fiftieth, and what it told."""
    run = HeldRun(tmp_path_factory.mktemp("tightened"), OMEGA / 50)
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(io.StringIO()):
        assert run("plan", "--hold") == 0
    return run, [line for line in told.getvalue().splitlines() if "perplexity on" in line or "planning again" in line]


@pytest.fixture
def run(tightened: tuple[HeldRun, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeldRun:
    """Another one with its own plan; it has all 3-bit layers, and each loses the same, whatever is read."""
    monkeypatch.setattr(hold, "loss_increase", lambda text, choices, *_, **__: OMEGA * choices.count(THREE))
    return HeldRun(tmp_path, OMEGA / 50, tightened[0].config.checkpoint)


def test_a_table_that_is_far_too_optimistic_is_corrected_until_the_bound_holds(
    tightened: tuple[HeldRun, list[str]],
) -> None:
    run, (*lines, last) = tightened
    broken = [line for line in lines if line.endswith("the bound is broken")]
    assert broken and "planning again with Σω ≤ " in lines[lines.index(broken[0]) + 1]
    assert last.endswith("the bound holds")
    quality = run.plan.quality
    assert quality.predicted <= quality.limit < quality.allowed / 10, "Ω was tightened"
    assert 0 < quality.measured <= quality.allowed, "what the text says decides"
    assert 0 < run.plan.decoder_choices.count(THREE) < 12


def pessimistic(run: HeldRun, times: float) -> HeldRun:
    """The run with a table that says layers lose so many times as much as they do."""
    table = SensitivityTable.load(run.config.sensitivity)
    replace(table, omega=tuple((times * OMEGA, 0.0) for _ in table.omega)).save(run.config.sensitivity)
    return run


def test_a_plan_that_uses_little_of_the_bound_gives_way_to_a_faster_one(
    run: HeldRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pessimistic(run, 4.0)("plan") == 0
    first = run.plan
    assert first.quality.predicted > 0.9 * first.quality.allowed * OMEGA / 0.005, "one layer of 0.012 nats, not two"
    assert run("plan", "--hold") == 0
    told = capsys.readouterr().err
    assert "the bound holds\nhetero-infer: planning again with Σω ≤ " in told and told.endswith("the bound holds\n")
    plan = run.plan
    assert plan.decoder_choices.count(THREE) > first.decoder_choices.count(THREE)
    assert plan.estimate.tokens_per_s > first.estimate.tokens_per_s
    assert 0.5 * plan.quality.allowed <= plan.quality.measured <= plan.quality.allowed < plan.quality.limit


def test_a_looser_plan_that_breaks_the_bound_is_forgotten(
    run: HeldRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pessimistic(run, 4.0)("plan") == 0
    first = run.plan
    monkeypatch.setattr(
        hold, "loss_increase", lambda text, choices, *_, **__: 0.001 if choices == first.layer_choices else 0.1
    )
    assert run("plan", "--hold") == 0
    assert run.plan.decision_digest == first.decision_digest and run.plan.quality.measured == 0.001
    told = capsys.readouterr().err
    assert "the bound is broken" in told
    monkeypatch.setattr(prepare, "new_plan", lambda *_: pytest.fail("looked for a faster plan once more"))
    assert run("plan", "--hold") == 0, "a launch does not begin the search again"


def test_a_looser_plan_that_is_no_faster_is_not_even_quantised(
    run: HeldRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pessimistic(run, 4.0)
    profile = profile_by_hand(ModelFolder(DEMO_MODEL).spec, "demo", run.config.choices, bit_s=2e-7)
    profile.save(run.config.profile)  # 13 bits less of each layer gain less than 1 %
    losses = iter([0.001])
    monkeypatch.setattr(hold, "loss_increase", lambda *_, **__: next(losses))
    assert run("plan", "--hold") == 0
    assert "that plan is no faster than the one that holds, which stays" in capsys.readouterr().err
    assert run.plan.quality.measured == 0.001 and run.plan.quality.settled


def test_what_was_measured_is_what_evaluate_measures(tightened: tuple[HeldRun, list[str]]) -> None:
    run, _ = tightened
    plan, folder = run.plan, ModelFolder(DEMO_MODEL)
    shards = ShardStore.of_model(run.config.checkpoint, folder.digest)
    before, after = (
        measure_perplexity(single_process_model(folder, choices, shards), folder, run.config.text).nats_per_token
        for choices in (None, plan.decoder_choices)
    )
    assert plan.quality.measured == pytest.approx(after - before, abs=1e-5)


def test_the_same_plan_and_text_are_not_measured_again(
    run: HeldRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", "--hold") == 0
    made = run.config.plan.stat().st_mtime_ns
    monkeypatch.setattr(hold, "loss_increase", lambda *_, **__: pytest.fail("measured again"))
    capsys.readouterr()
    assert run("plan", "--hold") == run("plan") == 0
    out, err = capsys.readouterr()
    assert run.config.plan.stat().st_mtime_ns == made
    assert err.count("measured") == 1 and err.endswith("the bound holds\n"), "its figures are told all the same"
    assert out.count("measured on held-out text, +2.0% at most\n") + out.count("measured on held-out\n") == 2


def test_another_text_is_measured(run: HeldRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("plan", "--hold") == 0
    plan = run.plan
    (run.path / "heldout.txt").write_text((DEMO_MODEL / "heldout.txt").read_text()[6000:12000])
    monkeypatch.setattr(hold, "loss_increase", lambda *_, **__: 0.7 * plan.quality.measured)
    assert run("plan", "--hold") == 0
    assert run.plan.quality.measured == 0.7 * plan.quality.measured
    assert run.plan.decision_digest == plan.decision_digest, "more than half of the allowance is used"


def test_a_run_that_was_killed_goes_on_with_the_tightened_plan(
    run: HeldRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([0.2])

    def killed_at_the_second(*_: object, **__: object) -> float:
        try:
            return next(losses)
        except StopIteration:
            raise KeyboardInterrupt from None

    with monkeypatch.context() as patch:
        patch.setattr(hold, "loss_increase", killed_at_the_second)
        assert run("plan", "--hold") == 1
    quality = run.plan.quality
    assert quality.limit < quality.allowed and quality.measured is None
    capsys.readouterr()
    assert run("plan", "--hold") == 0
    assert f"{math.expm1(0.2):+.2%} measured" not in capsys.readouterr().err, "the first plan is not measured again"
    assert 0 < run.plan.quality.measured <= run.plan.quality.allowed


def test_a_plan_that_was_seen_to_break_the_bound_is_tightened_by_the_next_run(
    run: HeldRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hold, "MOST_PLANS", 1)
        assert run("plan", "--hold") == 3
    assert run.plan.quality.is_broken
    assert run("plan", "--hold") == 0
    assert not run.plan.quality.is_broken


def test_without_a_tighter_plan_it_says_what_was_measured_and_what_would_hold(
    run: HeldRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run.set_memory("8MiB")  # too little for the layers that 16 bits would take
    assert run("plan", "--hold") == 3
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and "the bound is broken, and no plan fits with Σω ≤ " in last
    loss = run.plan.quality.measured
    assert f"{math.expm1(loss):+.2%} measured" in last and "+2.00% at most" in last
    bound = re.search(r"raise max_perplexity_increase to (\d\.\d{4}), which this plan holds", last)
    assert loss <= math.log1p(float(bound.group(1))) < loss + 2e-4
    run.set("max_perplexity_increase = 0.02", f"max_perplexity_increase = {bound.group(1)}")
    assert run("plan", "--hold") == 0


def test_a_bound_of_0_without_memory_for_16_bits_has_no_plan(run: HeldRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.set("max_perplexity_increase = 0.02", "max_perplexity_increase = 0.0")
    run.set_memory("8MiB")
    assert run("plan", "--hold") == 3
    assert "the quality limit Σω ≤ 0 nats per token cannot be met" in one_line_of_error(capsys)


def test_a_bound_of_0_is_held_by_16_bits(run: HeldRun) -> None:
    run.set("max_perplexity_increase = 0.02", "max_perplexity_increase = 0.0")
    assert run("plan", "--hold") == 0
    assert run.plan.quality.measured == 0 and THREE not in run.plan.layer_choices


@pytest.mark.parametrize("part", [slice(None), slice(5000), slice(3000, 9000)], ids=["whole", "beginning", "middle"])
def test_text_that_layers_are_calibrated_on_is_refused(
    run: HeldRun, part: slice, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / "heldout.txt").write_text((DEMO_MODEL / "calibration.txt").read_text()[part])
    run.config.sensitivity.unlink()  # it would be measured: the text is looked at first
    assert run("plan", "--hold") == 2
    assert "a bound is held on text that nothing was calibrated on" in one_line_of_error(capsys)


def fleet_of(plan: Plan, *losses: float | None) -> Fleet:
    """All layers of the plan on each device, measured to lose so much."""
    stages = [(StagePlan(device.name, plan.layer_choices),) for device in plan.devices]
    qualities = [replace(plan.quality, measured=loss) for loss in losses]
    pairs = zip(stages, qualities, strict=True)
    return Fleet(tuple(replace(plan, stages=one, estimate=None, quality=quality) for one, quality in pairs))


def test_replicas_that_are_alike_are_measured_once(run: HeldRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("plan") == 0
    measured: list[float] = []
    monkeypatch.setattr(hold, "loss_increase", lambda *_, **__: measured.append(0.01) or 0.01)
    fleet = hold.measured(fleet_of(run.plan, None, None), run.config, hold.held_out_text(run.config))
    assert [replica.quality.measured for replica in fleet.replicas] == [0.01, 0.01] and len(measured) == 1
    assert Fleet.load(run.config.plan) == fleet


def test_every_replica_is_held_and_the_worst_one_decides(run: HeldRun) -> None:
    assert run("plan") == 0
    plan = run.plan
    limits: list[float] = []

    def plan_within(limit: float) -> Fleet:
        limits.append(limit)
        return fleet_of(plan, 0.001, 0.015)

    held = until_held(fleet_of(plan, 0.001, 0.04), lambda fleet: fleet, plan_within, Path("heldout.txt"))
    allowed = math.log1p(0.02)
    assert limits == [pytest.approx(0.9 * plan.quality.predicted * allowed / 0.04)]
    assert [replica.quality.measured for replica in held.replicas] == [0.001, 0.015]


def test_it_does_not_plan_for_ever(run: HeldRun) -> None:
    assert run("plan") == 0
    plans: list[float] = []

    def plan_within(limit: float) -> Fleet:
        plans.append(limit)
        return Fleet((replace(run.plan, quality=replace(run.plan.quality, predicted=limit)),))

    def measure(fleet: Fleet) -> Fleet:
        (plan,) = fleet.replicas
        return Fleet((replace(plan, quality=replace(plan.quality, measured=0.021)),))

    with pytest.raises(InfeasibleError, match="broken after 6 plans; run it again to go on"):
        until_held(Fleet.load(run.config.plan), measure, plan_within, Path("heldout.txt"))
    assert len(plans) == MOST_PLANS - 1 and plans == sorted(plans, reverse=True)
