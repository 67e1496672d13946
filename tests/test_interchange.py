"""From a plan to a folder for other engines, and from such a folder to a plan: the commands, without a measurement."""

import json
from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.cli import main
from hetero_infer.spec import UNQUANTISED, Choice, Plan, RunConfig, SensitivityTable, StagePlan
from tests.tiny_model import write_tiny_model

MIXED = (Choice(3, 32), Choice(8, 64), UNQUANTISED, Choice(3, 32))
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 4}
CONFIG = """
[model]
path = "{path}/{model}"
[cluster]
hostfile = "{path}/hostfile"
[workload]
batch_size = 4
prompt_tokens = 16
new_tokens = 8
[quality]
text = "{path}/text.txt"
calibration = "{path}/text.txt"
calibration_windows = 2
{quality}
[paths]
work = "{path}/{model}-out"
"""


class Commands:
    """Over two GPUs that nobody measured, of which the model needs both."""

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)
        self.path = path
        (path / "text.txt").write_text("It was a bright cold day in April. " * 100)
        (path / "hostfile").write_text("a slots=1  # gpu=t4 memory=800KiB\nb slots=1  # gpu=p4 memory=800KiB\n")
        write_tiny_model(path / "model", dtype=torch.float16, with_tokenizer=True, **SHAPE)

    def config(self, model: str, quality: str = "") -> Path:
        path = self.path / f"{model}.toml"
        path.write_text(CONFIG.format(path=self.path, model=model, quality=quality))
        return path

    def __call__(self, model: str, *arguments: object) -> int:
        return main([*map(str, arguments), "-c", str(self.path / f"{model}.toml")])

    def export(self, decoders: tuple[Choice, ...]) -> None:
        """A plan by hand, quantised and exported to `hf`."""
        config = RunConfig.load(self.config("model"))
        digest = ModelFolder(config.model).digest
        stages = (StagePlan("a:0", (UNQUANTISED, *decoders[:2])), StagePlan("b:0", (*decoders[2:], UNQUANTISED)))
        facts = {"path": "", "digest": digest, "num_hidden_layers": 4}
        Plan(facts, config.cluster.devices, config.workload, stages, 1, 1).save(self.path / "by-hand.json")
        assert self("model", "quantize", self.path / "by-hand.json", "--export-hf", self.path / "hf") == 0
        self.config("hf")


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def perplexity(commands: Commands, model: str, capsys: pytest.CaptureFixture[str], *arguments: object) -> float:
    capsys.readouterr()
    assert commands(model, "evaluate", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)["perplexity"]


def test_an_export_says_which_engines_read_it(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.export(MIXED)
    said = capsys.readouterr().out
    assert (commands.path / "hf" / "README.md").read_text() in said
    assert "2 at 3 bits in groups of 32, 1 at 8 bits in groups of 64, 1 at 16 bits" in said
    assert "| gptqmodel | yes, by `dynamic` |" in said and "| vLLM | no" in said


def test_a_plan_for_a_quantised_model_has_the_bits_that_are_there(
    commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.export(MIXED)
    assert commands("hf", "plan", "--hold") == 0, "there are no other bits, so no text is asked"
    said = " ".join(capsys.readouterr().out.split())
    assert "quantised already: its layers are taken as they are" in said
    plan_path = commands.path / "hf-out" / "plan.json"
    plan = Plan.load(plan_path)
    assert plan.layer_choices == (UNQUANTISED, *MIXED, UNQUANTISED) and len(plan.stages) == 2
    assert plan.quality.limit == plan.quality.predicted == 0
    assert SensitivityTable.load(commands.path / "hf-out" / "sensitivity.json").total(plan.layer_choices) == 0
    for verb in ("check", "quantize", "explain", "simulate"):
        assert commands("hf", verb, plan_path) == 0
    assert "the plan states no limit" in " ".join(capsys.readouterr().out.split())
    assert not (commands.path / "hf-out" / "checkpoint").exists()


def test_an_imported_model_has_the_perplexity_of_the_plan_it_was_exported_from(
    commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.export(MIXED)
    there = commands.path / "model-out" / "checkpoint", "--plan", commands.path / "by-hand.json"
    exported = perplexity(commands, "model", capsys, *there)
    assert exported != perplexity(commands, "model", capsys)
    assert perplexity(commands, "hf", capsys) == exported
    assert commands("hf", "plan") == 0
    assert perplexity(commands, "hf", capsys, commands.path / "hf-out" / "checkpoint") == exported


def test_a_plan_with_other_bits_than_the_model_has_is_refused(
    commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.export(MIXED)
    assert commands("hf", "plan") == 0
    path = commands.path / "hf-out" / "plan.json"
    path.write_text(path.read_text().replace('"bits": 8, "group_size": 64', '"bits": 3, "group_size": 32', 1))
    assert commands("hf", "check", path) == 3
    assert "Σω = 1 layers other than stored is over the limit of 0" in capsys.readouterr().out
    assert commands("hf", "quantize", path) == 2
    assert "decoder layer 1 at 3g32: the model is quantised already and has it at 8g64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("quality", "says"),
    [
        ("choices = [{bits = 4}]", "choices: the model {path} is quantised already and has 8g64; leave choices out"),
        ("head = [{bits = 8}]", "head: the model {path} is quantised already and has it at 16 bits; leave head out"),
    ],
)
def test_choices_that_a_quantised_model_does_not_have_are_refused(
    commands: Commands, quality: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.export((Choice(8, 64),) * 4)
    commands.config("hf", quality)
    assert commands("hf", "plan") == 2
    assert says.format(path=commands.path / "hf") in capsys.readouterr().err


def test_choices_may_name_what_a_quantised_model_has_among_others(commands: Commands) -> None:
    commands.export((Choice(8, 64),) * 4)
    commands.config("hf", "choices = [{bits = 4}, {bits = 8}]")
    assert commands("hf", "plan") == 0
    assert set(Plan.load(commands.path / "hf-out" / "plan.json").decoder_choices) == {Choice(8, 64)}


def test_nothing_is_calibrated_where_the_model_is_quantised(
    commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.export(MIXED)
    assert commands("hf", "sensitivity") == 2
    assert "quantised already, so there is nothing to calibrate" in capsys.readouterr().err
