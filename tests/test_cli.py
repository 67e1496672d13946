"""The `hetero-infer` command: what it prints where, and the exit codes that scripts rely on."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hetero_infer import __version__
from hetero_infer.cli import main
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.prepare import request_for
from hetero_infer.spec import (
    UNQUANTISED,
    Choice,
    Fleet,
    ModelSpec,
    Phase,
    Plan,
    ProfileRow,
    ProfileTable,
    RunConfig,
    SensitivityTable,
    StagePlan,
)
from hetero_infer.spec.profile import EMBEDDING, HEAD
from hetero_infer.spec.sensitivity import METHODS
from tests.tiny_model import write_tiny_model

VERBS = ("devices", "measure", "sensitivity", "plan", "explain", "whatif", "check", "simulate", "quantize", "evaluate")
BITS = (3, 4, 8, 16)
CONFIG = """
[model]
path = "{path}/tiny"
[cluster]
hostfile = "{path}/hostfile"
[workload]
batch_size = 4
prompt_tokens = 16
new_tokens = 8
[quality]
max_perplexity_increase = 0.05
text = "{path}/text.txt"
calibration = "{path}/text.txt"
[paths]
work = "{path}/out"
"""


def profile_by_hand(spec: ModelSpec, name: str, choices: Sequence[Choice], bit_s: float = 1e-4 / 16) -> ProfileTable:
    """For up to 4 sequences of 16 + 8 tokens; fewer bits take less time."""
    points = [(Phase.PREFILL, tokens, 0) for tokens in (8, 16)] + [(Phase.DECODE, 1, past) for past in (16, 23)]
    return ProfileTable(
        tuple(
            ProfileRow(
                "cpu", f"{name}{end}", spec.hidden_size, spec.intermediate_size, choice.bits, choice.group_size,
                "float", phase, batch, tokens, past, 1e-4 * (1 + batch * tokens) + bit_s * choice.bits,
            )
            for choice in choices
            for end in ("", *([f"#{EMBEDDING}", f"#{HEAD}"] if choice.bits == 16 else []))
            for phase, tokens, past in points
            for batch in (1, 2, 4)
        ),
        {"cpu.threads": "1", "cpu.neighbours": str(min(2, os.cpu_count() or 1) - 1)},
    )  # fmt: skip


class Run:
    """A config whose profile and sensitivity are there, so that nothing is measured."""

    def __init__(self, path: Path) -> None:
        from hetero_infer.checkpoint.model_folder import ModelFolder
        from hetero_infer.checkpoint.text import CalibrationWindows

        self.path = path
        folder = ModelFolder(write_tiny_model(path / "tiny", with_tokenizer=True, num_hidden_layers=4))
        (path / "text.txt").write_text("It was a bright cold day in April. " * 300)
        self.config = path / "run.toml"
        self.config.write_text(CONFIG.format(path=path))
        self.set_memory("2MiB")
        choices = tuple(Choice(bits, 0 if bits == 16 else 64) for bits in BITS)
        windows = CalibrationWindows.from_text(folder, path / "text.txt")
        losses = (0.03, 0.01, 0.001, 0.0)
        SensitivityTable("variance", folder.digest, windows.digest, "nats", choices, (losses,) * 4).save(
            path / "out" / "sensitivity.json"
        )
        profile_by_hand(folder.spec, "tiny", choices).save(path / "out" / "profile.csv")

    def set_memory(self, amount: str) -> None:
        (self.path / "hostfile").write_text(f"localhost slots=2  # gpu=cpu memory={amount} threads=1\n")

    def __call__(self, *arguments: object) -> int:
        return main([*map(str, arguments), "-c", str(self.config)])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def plan_path(run: Run, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run("plan") == 0
    capsys.readouterr()
    return run.path / "out" / "plan.json"


def one_line_of_error(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("hetero-infer: ")
    return line


@pytest.mark.processes
def test_the_command_is_installed_and_lists_its_verbs() -> None:
    command = Path(sys.executable).with_name("hetero-infer")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert all(verb in done.stdout for verb in VERBS)
    as_module = subprocess.run(
        [sys.executable, "-m", "hetero_infer", "--version"], capture_output=True, text=True, timeout=60
    )
    assert as_module.stdout.strip() == __version__


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    assert exit.value.code == 0
    said = capsys.readouterr().out
    assert f"hetero-infer {verb}" in said and "--config" in said and "--json" in said


@pytest.mark.parametrize("arguments", [[], ["plann"], ["check"], ["plan", "--fast"]])
def test_a_command_line_that_is_none_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("usage: hetero-infer")


@pytest.mark.parametrize("verb", VERBS)
def test_a_config_that_is_not_there_is_exit_code_2(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [str(tmp_path / "plan.json")] if verb in ("explain", "check", "simulate", "quantize") else []
    assert main([verb, *plan, "-c", str(tmp_path / "nowhere.toml")]) == 2
    assert f"config {tmp_path}/nowhere.toml: cannot be read" in one_line_of_error(capsys)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("work =", "works =", "[paths] works is not known; did you mean work?"),
        ("= 16", "= 'many'", "[workload] prompt_tokens = 'many' is not a whole number"),
        ("/tiny", "/nothing", "no config.json there"),
        ("/hostfile", "/hosts", "hosts: cannot be read"),
        ("/text.txt", "/texts.txt", "texts.txt: cannot be read"),
        ("= 16", "= 1600", "pass the model's 256 positions; plan for fewer"),
    ],
)
def test_a_mistake_in_the_config_is_exit_code_2(
    old: str, new: str, named: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run.config.read_text()
    assert old in text
    run.config.write_text(text.replace(old, new))
    assert run("plan") == 2
    assert named in one_line_of_error(capsys)


def test_a_plan_that_is_not_there_is_exit_code_2(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", run.path / "nowhere.json") == 2
    assert "plan " in (line := one_line_of_error(capsys)) and "nowhere.json: cannot be read" in line


def test_too_little_memory_is_exit_code_3_with_the_devices_and_the_way_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.set_memory("100KiB")
    assert run("plan") == 3
    line = one_line_of_error(capsys)
    assert "localhost:" in line and "MiB" in line
    assert not (run.path / "out" / "plan.json").exists()


def test_a_plan_is_written_and_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan") == 0
    said = capsys.readouterr().out
    assert "localhost:0" in said and "localhost:1" in said and "uniform     an even split at" in said
    plan = Plan.load(run.path / "out" / "plan.json")
    assert len(plan.layer_choices) == 6 and plan.solver and plan.quality.predicted <= plan.quality.limit


def test_others_plans_stand_beside_the_plan(run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--compare") == 0
    said = capsys.readouterr().out
    assert run("plan", "--compare", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["comparison"]
    assert [row["name"] for row in rows][:2] == ["this plan", "uniform"] and rows[0]["slower"] == 1
    assert all(f"\n{row['name']} " in said for row in rows)
    assert all(row["omega"] <= Plan.load(plan_path).quality.limit for row in rows if "why_none" not in row)


@pytest.mark.processes
def test_json_is_one_object_on_stdout(run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    why = content.pop("why_not_uniform")
    assert isinstance(why, str) and content == json.loads(plan_path.read_text())

    assert run("check", plan_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"violations": []}

    # In a process of its own: what it imports for the first time must not print there either.
    command = [sys.executable, "-m", "hetero_infer", "simulate", plan_path, "--json", "-c", run.config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    simulated = json.loads(done.stdout)
    assert simulated["makespan_s"] == pytest.approx(Plan.load(plan_path).estimate.total_s, rel=1e-9)

    assert run("evaluate", "--json") == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] > 1


def test_the_same_inputs_give_the_same_plan_without_solving_again(run: Run, plan_path: Path) -> None:
    before = plan_path.stat().st_mtime_ns
    assert run("plan") == 0
    assert plan_path.stat().st_mtime_ns == before
    run.set_memory("1900KiB")
    assert run("plan") == 0
    assert plan_path.stat().st_mtime_ns != before


def test_a_simulation_draws_so_many_rows(run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", plan_path, "--rows", "12") == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.startswith("time  stage 0") and len(rows) in (12, 13) and last.startswith("simulated: ")


def test_a_simulation_is_written_as_a_trace(run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", plan_path, "--trace", run.path / "trace.json") == 0
    events = json.loads((run.path / "trace.json").read_text())["traceEvents"]
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names[0] == "simulated" and names[1].startswith("stage 0: localhost:0 cpu: ")
    makespan_s = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X") / 1e6
    assert makespan_s == pytest.approx(Plan.load(plan_path).estimate.total_s, abs=1e-8)


def test_check_accepts_the_plan_that_was_made(run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", plan_path) == 0
    assert capsys.readouterr().out == "the plan can run and keeps its quality limit\n"


def test_check_refuses_a_plan_that_was_changed_for_the_worse(
    run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.load(plan_path)
    stages = [stage.layers for stage in plan.stages]
    decoders_3 = [tuple(Choice(3, 64) if choice.is_quantised else choice for choice in layers) for layers in stages]
    everywhere_3 = [tuple(Choice(3, 64) for _ in layers) for layers in stages]
    small = tuple(replace(device, memory_bytes=2**18) for device in plan.devices)
    for changed, memory, named in [
        (
            replace(plan, stages=tuple(map(_with_layers, plan.stages, everywhere_3))),
            "2MiB",
            ("no embedding at 3g64 bits", "no head at 3g64 bits"),
        ),
        (replace(plan, stages=tuple(map(_with_layers, plan.stages, decoders_3))), "2MiB", ("is over the limit",)),
        (replace(plan, devices=small), "256KiB", ("stage 0 (cpu on localhost:0) needs ",)),
    ]:
        run.set_memory(memory)
        changed.save(run.path / "changed.json")
        assert run("check", run.path / "changed.json") == 3
        said = capsys.readouterr()
        assert all(words in said.out for words in named), said.out
        assert "Traceback" not in said.err
        assert run("check", run.path / "changed.json", "--json") == 3
        assert len(json.loads(capsys.readouterr().out)["violations"]) >= len(named)


def test_a_plan_with_a_quantised_head_is_checked_quantised_and_evaluated(
    run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, eight = Plan.load(plan_path), Choice(8, 64)
    table_path = run.path / "out" / "sensitivity.json"
    table = SensitivityTable.load(table_path)
    replace(table, head={eight: 0.002, UNQUANTISED: 0.0}).save(table_path)
    stages = (*plan.stages[:-1], _with_layers(plan.stages[-1], (*plan.stages[-1].layers[:-1], eight)))
    replace(plan, stages=stages).save(run.path / "edited.json")
    checkpoint = run.path / "checkpoint"
    assert run("check", run.path / "edited.json") == 0
    assert run("quantize", run.path / "edited.json", "-o", checkpoint) == 0
    assert len(list(checkpoint.glob("head-8g64-*.safetensors"))) == 1
    capsys.readouterr()
    losses = []
    for path in (plan_path, run.path / "edited.json"):
        assert run("quantize", path, "-o", checkpoint) == 0
        capsys.readouterr()
        assert run("evaluate", checkpoint, "--plan", path, "--json") == 0
        losses.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert losses[0] != losses[1]


def test_evaluate_says_what_it_scored_and_how_far_greedy_answers_agree(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / "short.txt").write_text("It was a bright cold day in April. " * 4)
    asked = ("evaluate", "--text", run.path / "short.txt", "--context", 16, "--stride", 5)
    assert run(*asked, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["context_tokens"], facts["stride_tokens"], len(facts["text_digest"])) == (16, 5, 16)
    assert facts["scored_bytes"] < 140 and "agreement" not in facts
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "It", "max_tokens": 3}}
    (run.path / "prompts.jsonl").write_text(json.dumps(line))
    for prompts, answers in (("short.txt", "1 of 1"), ("prompts.jsonl", "1 of 1")):
        assert run(*asked, "--agreement", run.path / prompts) == 0
        said = capsys.readouterr().out
        assert f"perplexity  {facts['perplexity']:.4f}, {facts['bits_per_byte']:.4f} bits per byte" in said
        assert "windows     of 16 tokens, 5 after each other" in said
        assert "agreement   100.00%" in said and f"{answers} answers are the same" in said


def test_each_method_writes_its_table_and_a_plan_wants_the_configs(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.path / "out" / "sensitivity.json"
    for method in METHODS:
        assert run("sensitivity", "--method", method, "--json") == 0
        assert json.loads(capsys.readouterr().out)["method"] == method
        table = SensitivityTable.load(path)
        assert (table.method, len(table.omega), table.unit) == (method, 4, "nats per token")
    assert run("sensitivity") == 0
    assert f"nats per token, by variance, {path}" in capsys.readouterr().out, "which is the default"
    run.config.write_text(CONFIG.format(path=run.path).replace("[quality]", '[quality]\nindicator = "random"'))
    assert run("plan") == 0
    assert SensitivityTable.load(path).method == "random"
    made_ns = path.stat().st_mtime_ns
    assert run("plan") == 0
    assert path.stat().st_mtime_ns == made_ns, "what still holds is used again"


def test_explain_says_what_binds_of_the_plan_that_was_made(
    run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", plan_path) == 0
    said = capsys.readouterr().out
    assert all(f"\n{about} " in said for about in ("binding", "memory", "quality", "prefill", "decode", "uniform"))
    assert run("explain", plan_path, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["violations"] == [] and len(content["memory"]) == 2
    plan = Plan.load(plan_path)
    assert content["prefill_s"] + content["decode_s"] == pytest.approx(plan.estimate.total_s)
    assert content["quality"]["used"] == pytest.approx(plan.quality.predicted)
    for finding, used in zip(content["memory"], plan.estimate.memory_bytes, strict=True):
        assert finding["free_bytes"] == 2**21 - sum(used.values())


def test_explain_works_out_an_edited_plan_anew(run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.load(plan_path)
    one_each = replace(plan, decode_micro_batch_size=1, estimate=None, solver=None, quality=None)
    one_each.save(run.path / "edited.json")
    assert run("explain", run.path / "edited.json", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["decode_s"] > plan.estimate.decode_s and content["quality"]["limit"] is None
    assert content["best_size"]["phase"] == "decode" and content["best_size"]["slower"] < 0


def test_explain_lists_what_a_plan_breaks(run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.load(plan_path)
    replace(plan, devices=tuple(replace(device, memory_bytes=2**18) for device in plan.devices)).save(plan_path)
    run.set_memory("256KiB")
    assert run("explain", plan_path) == 3
    assert capsys.readouterr().out.startswith("stage 0 (cpu on localhost:0) needs ")
    assert run("explain", plan_path, "--json") == 3
    assert len(json.loads(capsys.readouterr().out)["violations"]) == 2


def test_a_plan_for_another_model_is_not_explained(
    run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.load(plan_path)
    replace(plan, model={**plan.model, "digest": "another"}).save(plan_path)
    assert run("explain", plan_path) == 2
    assert "it is for the model another" in one_line_of_error(capsys)


def test_a_plan_for_other_devices_is_not_explained(
    run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.set_memory("3MiB")
    assert run("explain", plan_path) == 2
    assert "memory_bytes of localhost:0 is 2097152 in it, and 3145728 in hostfile" in one_line_of_error(capsys)


def test_explain_plans_again_unless_it_is_told_not_to(
    run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", plan_path) == 0
    said = capsys.readouterr().out
    assert "planned again with 3 s each" in said and "a link twice as fast between localhost and localhost" in said
    assert run("explain", plan_path, "--each-s", 0) == 0
    assert "planned again" not in capsys.readouterr().out


def test_whatif_shows_both_plans_and_what_the_change_is_worth(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("whatif", "--add", "cpu:1=4MiB", "--drop", "localhost:1") == 0
    said = capsys.readouterr().out
    assert "now" in said and "changed" in said and "the change is worth" in said and "default_link" in said
    assert not (run.path / "out" / "plan.json").exists()
    assert run("whatif", "--drop", "cpu:1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["now"]["cluster"]) == 2 and len(found["changed"]["cluster"]) == 1


def test_whatif_without_a_change_or_without_a_plan_for_it_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("whatif") == 2
    assert "nothing is changed" in one_line_of_error(capsys)
    run.set_memory("1MiB")
    assert run("whatif", "--drop", "cpu:1") == 3
    assert "no plan" in capsys.readouterr().out


def test_a_plan_is_written_as_a_page_with_its_pareto_front(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    page = run.path / "plan.html"
    assert run("plan", "--pareto", "--html", page, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pareto"]["points"]
    assert "Speed, quality, devices" in page.read_text()
    assert run("explain", run.path / "out" / "plan.json", "--html", page, "--each-s", 0) == 0
    assert "What else is to be said" in page.read_text()


def test_a_terminal_without_unicode_gets_ascii(run: Run, plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run("plan") == 0 and run("explain", plan_path) == 0
    stream.flush()
    assert b"# weights" in stream.buffer.getvalue()


def _with_layers(stage: object, layers: tuple[Choice, ...]) -> object:
    return replace(stage, layers=layers)


def test_a_plan_for_another_model_is_not_quantised(
    run: Run, plan_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(run.path / "tiny", seed=1, with_tokenizer=True, num_hidden_layers=4)
    assert run("quantize", plan_path) == 2
    assert "it is for the model" in one_line_of_error(capsys)


def lengths_from(run: Run, key: str, file: str, content: str) -> Path:
    path = run.path / file
    path.write_text(content)
    lengths = "prompt_tokens = 16\nnew_tokens = 8\n"
    assert lengths in run.config.read_text()
    run.config.write_text(run.config.read_text().replace(lengths, f'{key} = "{path}"\n'))
    return path


def test_a_plan_for_a_file_of_requests_is_the_best_of_several(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/completions", "body": {"prompt": [7] * p, "max_tokens": m}}
        for n, (p, m) in enumerate([(16, 8), (3, 2), (9, 8), (16, 1), (5, 5), (12, 3), (250, 250)])
    ]
    path = lengths_from(run, "requests", "in.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert run("plan") == 0
    said = capsys.readouterr().out
    table = said[said.index("planned for") :].splitlines()
    assert len(table) >= 4 and any(row.startswith("average ") for row in table)
    assert "6 requests, and 1 left out that are longer or wrong: " in said
    plan = Plan.load(run.path / "out" / "plan.json")
    assert (plan.workload.batch_size, plan.workload.prompt_tokens, plan.workload.new_tokens) == (4, 16, 8)
    for verb in ("check", "explain", "simulate"):
        assert run(verb, run.path / "out" / "plan.json") == 0
    capsys.readouterr()

    before = (run.path / "out" / "plan.json").stat().st_mtime_ns
    assert run("plan") == 0
    again = capsys.readouterr().out
    assert "planned for" not in again and "6 requests, and 1 left out" in again
    assert (run.path / "out" / "plan.json").stat().st_mtime_ns == before
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    assert run("plan") == 0
    assert "planned for" in capsys.readouterr().out, "another file, another plan"


def test_a_plan_for_a_trace_says_what_it_sustains(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"2023-11-16 18:{minute:02}:00,{prompt},{new}\n" for minute, prompt, new in ((0, 16, 2), (1, 4, 8), (2, 8, 5))
    ]
    lengths_from(run, "arrivals", "trace.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(rows))
    assert run("plan") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 requests, 0.0167 a second on average and 0.0167 in the busiest minute." in said
    assert "requests/s sustained, all of it; " in said
    plan = Plan.load(run.path / "out" / "plan.json")
    assert plan.workload.prompt_tokens == 16 and plan.workload.cache_tokens == 17, "the longest of each is admitted"
    assert run("check", run.path / "out" / "plan.json") == 0


@pytest.fixture
def fleet_path(run: Run, plan_path: Path) -> Path:
    """In place of the plan, one device for each of two replicas, with 3 and 1 sequences."""
    plan, request = Plan.load(plan_path), request_for(RunConfig.load(run.config))
    replicas = []
    for device, batch_size in zip(plan.devices, (3, 1), strict=True):
        stages = (StagePlan(device.name, plan.layer_choices),)
        workload = replace(plan.workload, batch_size=batch_size)
        replica = replace(plan, stages=stages, workload=workload, prefill_micro_batch_size=1, decode_micro_batch_size=1)
        estimate = estimate_plan(replica, request.model, request.cluster, request.latency)
        replicas.append(replace(replica, estimate=estimate))
    Fleet(tuple(replicas), plan.solver).made_from(plan.inputs_digest).save(plan_path)
    return plan_path


def test_replicas_are_told_together_and_one_by_one(
    run: Run, fleet_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = Fleet.load(fleet_path)
    assert run("plan") == 0  # the file is up to date
    said = capsys.readouterr().out
    rate = 4 * 8 / max(replica.estimate.total_s for replica in fleet.replicas)
    assert "replicas    2 at the same time: 4 sequences in " in said and f", {rate:.1f} tokens/s" in said
    assert [said.count(f"{batch} sequences, 16 prompt") for batch in (3, 1)] == [1, 1]

    for number, replica in enumerate(fleet.replicas):
        assert run("simulate", fleet_path, "--json", "--replica", number) == 0
        simulated = json.loads(capsys.readouterr().out)
        assert simulated["makespan_s"] == pytest.approx(replica.estimate.total_s, rel=1e-9)
        assert run("explain", fleet_path, "--replica", number) == 0
        said = capsys.readouterr().out
        assert f"localhost:{number}" in said and f"localhost:{1 - number}" not in said


def test_what_is_of_one_pipeline_is_not_skipped_in_silence(
    run: Run, fleet_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = run.path / "page.html"
    assert run("plan", "--compare", "--pareto", "--html", page) == 0 and not page.exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "comparison baselines plan one pipeline, and this plan has several" in said
    assert "pareto the front is of one pipeline, and this plan has several" in said
    assert "page of one replica: 'hetero-infer explain " in said and "--replica 0 --html' writes it" in said
    assert run("plan", "--pareto", "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"].keys() == {"pareto"}


@pytest.mark.parametrize(("said", "replicas"), [("2", {2}), ('"auto"', {1, 2})])
def test_replicas_are_planned_where_the_config_asks_for_them(
    run: Run, capsys: pytest.CaptureFixture[str], said: str, replicas: set[int]
) -> None:
    run.config.write_text(run.config.read_text() + f"[planner]\nreplicas = {said}\ntime_limit_s = 10\ngap = 0.5\n")
    assert run("plan", "--json") == 0
    capsys.readouterr()
    path = run.path / "out" / "plan.json"
    fleet = Fleet.load(path)
    assert len(fleet.replicas) in replicas and fleet.workload.batch_size == 4
    assert not fleet.is_edited
    assert run("check", path) == 0
    assert run("plan") == 0
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [(), ("--replica", "2"), ("--replica", "-1")])
def test_of_several_replicas_one_must_be_asked_for(
    asked: tuple[str, ...], run: Run, fleet_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("simulate", "explain"):
        assert run(verb, fleet_path, *asked) == 2
        assert "the plan has the replicas 0 to 1; say which with --replica" in one_line_of_error(capsys)


def test_what_one_replica_breaks_is_told_of_that_one(
    run: Run, fleet_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = Fleet.load(fleet_path)
    assert run("check", fleet_path) == 0
    assert capsys.readouterr().out == "the plan can run and keeps its quality limit\n"
    worse = replace(fleet.replicas[1], stages=(StagePlan("localhost:1", (Choice(3, 64),) * 6),))
    replace(fleet, replicas=(fleet.replicas[0], worse)).save(fleet_path)
    assert run("check", fleet_path, "--json") == 3
    violations = json.loads(capsys.readouterr().out)["violations"]
    assert violations and all(each.startswith("replica 1: ") for each in violations)


@pytest.mark.parametrize("sequential", ["false", "true"])
def test_layers_are_quantised_for_all_replicas_or_for_some_devices(
    sequential: str, run: Run, fleet_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.config.write_text(f"{run.config.read_text()}[gptq]\nsequential = {sequential}\n")
    fleet = Fleet.load(fleet_path)
    bits = {"localhost:0": Choice(8, 64), "localhost:1": Choice(4, 64)}
    stages = [StagePlan(device, (UNQUANTISED, *[choice] * 4, UNQUANTISED)) for device, choice in bits.items()]
    replicas = (replace(one, stages=(stage,)) for one, stage in zip(fleet.replicas, stages, strict=True))
    replace(fleet, replicas=tuple(replicas)).save(fleet_path)

    def made() -> set[str]:
        return {path.name.split("-")[1] for path in (run.path / "out" / "checkpoint").glob("layer*")}

    assert run("quantize", fleet_path, "--devices", "localhost:1") == 0 and made() == {"4g64"}
    assert run("quantize", fleet_path) == 0 and made() == {"4g64", "8g64"}
    capsys.readouterr()
    found = []
    for number in range(2):
        assert run("evaluate", run.path / "out" / "checkpoint", "--json", "--replica", number) == 0
        found.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert found[0] != found[1]
