"""A bench prints what it measured, keeps it as it goes on, and says what was not met."""

import io
import json
from pathlib import Path
from types import ModuleType

import pytest

from hetero_infer.bench import planner, quality
from hetero_infer.bench.runner import run
from hetero_infer.bench.section import Demand, Section
from hetero_infer.cli import main
from hetero_infer.spec import InputError
from tests.models.stories260k import SHARED


def good(*_: object) -> Section:
    return Section("Trees", ("kind", "metres"), [("oak", "30")], [Demand("an oak is 30 m high", True)])


def bad(*_: object) -> Section:
    return Section("Shrubs", ("kind", "metres"), [("ivy", "3")], [Demand("ivy is 40 m high", False)], ["a dry year"])


def test_each_section_is_printed_and_kept(tmp_path: Path) -> None:
    tables, output = io.StringIO(), tmp_path / "new" / "bench.json"
    content = run({"trees": good, "shrubs": bad}, tmp_path, output, [], tables)
    assert json.loads(output.read_text()) == json.loads(json.dumps(content))
    assert content.keys() >= {"date", "machine", "versions", "commit", "command"}
    assert "met: an oak is 30 m high" in tables.getvalue() and "NOT MET: ivy is 40 m high" in tables.getvalue()
    assert list(run({"trees": good, "shrubs": bad}, tmp_path, output, ["shrubs"], tables)["sections"]) == ["shrubs"]


def test_what_was_done_is_kept_when_a_later_section_fails(tmp_path: Path) -> None:
    def broken(_: Path) -> Section:
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError):
        run({"trees": good, "papers": broken}, tmp_path, tmp_path / "bench.json", [], io.StringIO())
    assert list(json.loads((tmp_path / "bench.json").read_text())["sections"]) == ["trees"]


def test_unknown_sections_and_missing_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--only flowers: the sections are trees"):
        run({"trees": good}, tmp_path, tmp_path / "bench.json", ["flowers"], io.StringIO())
    with pytest.raises(InputError, match="HETERO_INFER_SHARED"):
        run({"trees": good}, tmp_path / "none", tmp_path / "bench.json", [], io.StringIO())


@pytest.mark.parametrize("bench", [planner, quality])
def test_the_verb_fails_where_something_was_not_met(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HETERO_INFER_SHARED", str(tmp_path))
    monkeypatch.setattr(bench, "SECTIONS", {"trees": good, "shrubs": bad})
    monkeypatch.chdir(tmp_path)
    of = bench.__name__.rpartition(".")[2]
    verb = ["bench", of, "--json"]
    assert main(verb) == 1
    assert (tmp_path / "out" / "bench" / f"{of}.json").exists()
    assert list(json.loads(capsys.readouterr().out)["sections"]) == ["trees", "shrubs"]
    assert main([*verb, "--only", "trees"]) == 0


def test_a_model_without_its_texts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the published data, HETERO_INFER_SHARED")
    monkeypatch.setenv("HETERO_INFER_SHARED", str(SHARED))
    assert main(["bench", "quality", "--model", str(tmp_path), "-o", str(tmp_path / "q.json")]) == 2
    assert "it has no calibration.txt; launch/train_demo_model.py makes" in capsys.readouterr().err
    assert main(["bench", "planner", "--model", str(tmp_path), "-o", str(tmp_path / "p.json")]) == 2
    assert "--model is for 'bench quality'" in capsys.readouterr().err
