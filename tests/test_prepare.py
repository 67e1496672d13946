"""Where a plan's seconds come from: measured, or the spec sheet and then said; and which links it counted with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.cli import main
from hetero_infer.prepare import covers
from hetero_infer.spec import Choice, Link, LinkTable, Plan, ProfileTable, RunConfig, SensitivityTable
from hetero_infer.spec.profile import HEAD
from tests.test_cli import Run, one_line_of_error

ROOT = Path(__file__).parent.parent
MIX = "node-a slots=1  # gpu=v100-32 memory=500KiB\nnode-b slots=2  # gpu=t4 memory=350KiB\n"  # the model needs both


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """On GPUs that nobody measured."""
    run = Run(tmp_path)
    (tmp_path / "out" / "profile.csv").unlink()
    (tmp_path / "hostfile").write_text(MIX)
    return run


def plan_of(run: Run) -> Plan:
    return Plan.load(run.path / "out" / "plan.json")


def measured_as(run: Run, name: str, tmp_path: Path) -> ProfileTable:
    """The CPU's rows as if they were of another type."""
    cpu = ProfileTable.load(Run(tmp_path / "again").path / "out" / "profile.csv")
    rows = tuple(replace(row, device=name) for row in cpu.rows)
    return ProfileTable(rows, {f"{name}.threads": "1", f"{name}.neighbours": "0"})


def test_without_measurements_the_spec_sheet_is_used_and_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("predicted by the spec sheet (t4, v100-32), ") == 3, "prefill, decode, together"
    assert "default_link (100 µs, 8.00 Gbit/s) for node-a to node-b and 2 more; launch/measure.py" in said
    assert plan_of(run).estimate.source == {"v100-32": "spec sheet", "t4": "spec sheet"}
    assert run("simulate", run.path / "out" / "plan.json") == 0
    assert "simulated by the spec sheet (t4, v100-32): " in capsys.readouterr().out
    assert run("check", run.path / "out" / "plan.json") == 0


def test_what_was_measured_goes_before_the_spec_sheet(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_as(run, "t4", tmp_path).save(tmp_path / "out" / "profile.csv")
    assert run("plan", "--json") == 0
    estimate = json.loads(capsys.readouterr().out)["estimate"]
    assert estimate["source"] == {"v100-32": "spec sheet", "t4": "measured"}
    assert estimate["holdout_mean"].keys() == {"t4"} and 0 <= estimate["holdout_mean"]["t4"] < 0.1
    assert {fit["device_type"] for fit in estimate["fits"]} == {"t4"}
    assert {fit["phase"] for fit in estimate["fits"]} == {"prefill", "decode"}
    assert all(fit["method"] in ("interpolation", "regression") for fit in estimate["fits"])
    assert run("plan") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "predicted by the spec sheet (v100-32), " in said and "t4 measured (held-out points " in said


def test_a_type_measured_in_part_is_not_replaced_by_the_spec_sheet(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = measured_as(run, "t4", tmp_path)
    small = tuple(row for row in table.rows if row.batch < 4)
    ProfileTable(small, table.header).save(tmp_path / "out" / "profile.csv")
    assert run("plan") == 2
    line = one_line_of_error(capsys)
    assert "it has t4 for tiny, but not at these choices" in line and "launch/measure.py" in line


def test_a_profile_covers_the_choices_of_the_ends(run: Run, tmp_path: Path) -> None:
    table = measured_as(run, "t4", tmp_path)
    spec = ModelFolder(run.path / "tiny").spec
    config = RunConfig.load(run.config)
    eight = Choice(8, 64)
    wants_more = replace(config, head_choices=(eight, *config.head_choices))
    assert covers(table, spec, config, "t4") and not covers(table, spec, wants_more, "t4")
    heads = tuple(replace(row, bits=8, group_size=64) for row in table.rows if row.layer_kind == HEAD)
    assert covers(ProfileTable((*table.rows, *heads), table.header), spec, wants_more, "t4")


def test_a_type_that_is_in_no_spec_sheet_must_be_measured(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "hostfile").write_text("node-a slots=2  # gpu=b300 memory=24GiB\n")
    assert run("plan") == 2
    line = one_line_of_error(capsys)
    assert "device node-a:0: b300 was not measured" in line and "launch/measure.py -c" in line


def test_measured_links_are_priced_and_make_a_new_plan(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan") == 0
    first = plan_of(run)
    links = {(a, b): Link(0.5, 1e9) for a in ("node-a", "node-b") for b in ("node-a", "node-b") if a != b}
    LinkTable(links).save(run.path / "out" / "links.csv")
    capsys.readouterr()
    assert run("plan") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "default_link (100 µs, 8.00 Gbit/s) for node-b to node-b;" in said, "the only pair left"
    second = plan_of(run)
    # A prompt crosses from node-a to node-b, and every token comes back: half a second each time.
    assert second.estimate.prefill_s > first.estimate.prefill_s + 0.99
    assert second.estimate.decode_s > first.estimate.decode_s + 0.99 * (second.workload.new_tokens - 1)
    assert run("simulate", run.path / "out" / "plan.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["makespan_s"] == pytest.approx(second.estimate.total_s, rel=1e-9)


def test_links_of_hosts_that_are_not_in_the_hostfile_change_nothing(run: Run) -> None:
    assert run("plan") == 0
    made_ns = (run.path / "out" / "plan.json").stat().st_mtime_ns
    LinkTable({("elsewhere", "node-a"): Link(0.5, 1e9)}).save(run.path / "out" / "links.csv")
    assert run("plan") == 0
    assert (run.path / "out" / "plan.json").stat().st_mtime_ns == made_ns


def test_a_links_file_that_is_none_is_exit_code_2(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "out" / "links.csv").write_text("node-a is near node-b\n")
    assert run("plan") == 2
    assert "links.csv: its first line must read '# format = 1'" in one_line_of_error(capsys)


def test_the_server_of_a_mixed_cluster_can_be_planned_on_a_laptop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """launch/serve.toml and hostfiles/mix as they come, with the demo model and no GPU anywhere."""
    text = (ROOT / "launch" / "serve.toml").read_text()
    text = text.replace("out/serve", str(tmp_path)).replace("hostfiles/", f"{ROOT}/hostfiles/")
    (tmp_path / "serve.toml").write_text(text)
    config = RunConfig.load(tmp_path / "serve.toml")
    folder = ModelFolder(config.model)
    windows = CalibrationWindows.from_text(folder, config.calibration)
    omega = ((0.03, 0.01, 0.001, 0.0),) * folder.spec.num_hidden_layers
    SensitivityTable("variance", folder.digest, windows.digest, "nats", config.choices, omega).save(config.sensitivity)
    assert main(["plan", "-c", str(tmp_path / "serve.toml")]) == 0
    assert "predicted by the spec sheet (v100-32), " in capsys.readouterr().out, "the model fits on one"
    assert not (tmp_path / "profile.csv").exists(), "nothing was measured here"
