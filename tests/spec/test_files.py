"""Files are whole or not there; profiles, sensitivities and choices say the same after writing and reading."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hetero_infer.spec import (
    Choice,
    HeteroInferError,
    InputError,
    Phase,
    ProfileRow,
    ProfileTable,
    SensitivityTable,
    Workload,
)
from hetero_infer.spec.files import digest_of, write_atomically
from hetero_infer.spec.sensitivity import StandardErrors

ROW = ProfileRow("t4", "tiny", 48, 88, 4, 64, "float", Phase.PREFILL, 8, 64, 0, 1.25e-3)
ROWS = (
    ROW,
    replace(ROW, phase=Phase.DECODE, input_tokens=1, past_tokens=95, seconds=2.5e-7),
    replace(ROW, device="cpu", model="tiny, the #1#head", bits=16, group_size=0, seconds=12345.5),
)
TABLE = SensitivityTable("variance", "m", "t", "nats", (Choice(4, 64), Choice(16)), ((0.5, 0.0), (1e-9, 0.0)))


@pytest.mark.parametrize("content", ["ä text\n", b"\x00\xff bytes", ""])
def test_what_is_written_is_there(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError("disk full"), r"file: cannot be written \(disk full\); make room"), (KeyboardInterrupt(), "^$")],
    ids=["error", "ctrl-c"],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(
    step: str, error: BaseException, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error) if isinstance(error, KeyboardInterrupt) else HeteroInferError, match=said):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_digest_tells_apart_what_only_looks_the_same_when_joined() -> None:
    digests = {digest_of("ab", "c"), digest_of("a", "bc"), digest_of("abc"), digest_of("abc", ""), digest_of({"a": 1})}
    assert len(digests) == 5
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 2, "b": 1})
    assert digest_of("a") == digest_of(b"a") and len(digest_of("a")) == 16


def test_a_profile_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    table = ProfileTable(ROWS, {"machine": "a = b", "date": "2026-11-20"})
    table.save(tmp_path / "profile.csv")
    assert ProfileTable.load(tmp_path / "profile.csv") == table
    assert [row.layer_kind for row in ROWS[:2]] == ["decoder"] * 2
    assert ROWS[1].choice == Choice(4, 64)


def test_an_empty_profile_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    ProfileTable(()).save(tmp_path / "profile.csv")
    assert ProfileTable.load(tmp_path / "profile.csv") == ProfileTable(())


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("# format = 1", "# format = 9", "its first line must read '# format = 1'"),
        ("# format = 1\n", "", "its first line must read '# format = 1'"),
        ("prefill", "training", "row 1: phase = 'training' is not one of prefill, decode"),
        ("1.250000e-03", "fast", "row 1: seconds = 'fast' is not a number"),
        ("seconds", "minutes", "the column minutes is not known"),
        (",8,64,0,1.250000e-03", "", "row 1: 8 values for 12 columns"),
    ],
)
def test_a_broken_profile_is_refused_with_its_row(old: str, new: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.csv"
    ProfileTable(ROWS[:1]).save(path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError) as error:
        ProfileTable.load(path)
    assert named in str(error.value)


def test_a_sensitivity_table_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == TABLE
    assert TABLE.of(1, Choice(4, 64)) == 1e-9


def test_ends_have_indicators_of_their_own(tmp_path: Path) -> None:
    table = replace(TABLE, embedding={Choice(8, 64): 0.25, Choice(16): 0.0}, head={Choice(3, 32): 2.0})
    table.save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == table
    assert table.of_end("embedding", Choice(8, 64)) == 0.25 and table.of_end("head", Choice(3, 32)) == 2.0
    assert table.total([Choice(8, 64), Choice(4, 64), Choice(16), Choice(3, 32)]) == 0.25 + 0.5 + 2.0


def test_a_table_from_before_ends_had_choices_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    TABLE.save(path)
    old = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("embedding", "head")}
    path.write_text(json.dumps(old))
    assert SensitivityTable.load(path) == TABLE
    assert TABLE.head == TABLE.embedding == {Choice(16): 0.0}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"choice": {"bits": 8}, "omega": 0.1}, "8g64 bits stand there twice"),
        ({"choice": {"bits": 4}, "omega": -0.1}, "head at 4g64 bits = -0.1: an indicator"),
        ({"choice": {"bits": 4}}, r"head\[1\]: omega is missing"),
    ],
)
def test_an_end_that_makes_no_sense_is_refused(entry: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    TABLE.save(path)
    first = {"choice": {"bits": 8}, "omega": 0.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"head": [first, entry]}))
    with pytest.raises(InputError, match=said):
        SensitivityTable.load(path)


def with_errors(table: SensitivityTable = TABLE) -> SensitivityTable:
    errors = StandardErrors((0.2, 0.0), ((0.03, 0.0), (0.04, 0.0)), {Choice(16): 0.0}, {Choice(16): 0.0})
    return replace(table, errors=errors)


def test_what_a_table_is_known_with_is_kept(tmp_path: Path) -> None:
    with_errors().save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == with_errors()


def test_an_upper_total_adds_a_scale_for_all_layers_and_each_layers_own() -> None:
    four, table = Choice(4, 64), with_errors(replace(TABLE, omega=((0.5, 0.0), (0.3, 0.0))))
    plan = [Choice(16), four, four, Choice(16)]
    scale, own = 0.2 * (0.5 + 0.3), (0.03**2 + 0.04**2) ** 0.5
    assert table.upper_total(plan, 0.975) == pytest.approx(0.8 + 1.95996 * (scale**2 + own**2) ** 0.5)
    assert table.upper_total(plan, 0.5) == pytest.approx(table.total(plan))
    assert table.upper_total([Choice(16)] * 4) == 0.0
    assert replace(table, errors=None).upper_total(plan) == table.total(plan), "written by hand: exact"


def test_an_upper_total_adds_the_error_of_an_end() -> None:
    eight = Choice(8, 64)
    table = replace(TABLE, head={eight: 0.25})
    table = replace(table, errors=replace(with_errors().errors, head={eight: 0.1}))
    assert table.upper_total([Choice(16)] * 3 + [eight], 0.975) == pytest.approx(0.25 + 1.95996 * 0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda errors: errors.pop("scale"), "errors: scale is missing"),
        (lambda errors: errors.update(scale=[0.1]), "errors: there is not one for each value of the table"),
        (lambda errors: errors.update(scale=[0.1, "x"]), r"errors: scale\[1\] = 'x' is not a number"),
        (lambda errors: errors.update(scale=[0.1, -0.1]), r"scale\[1\] = -0.1: a standard error is a number of at"),
        (lambda errors: errors["omega"].pop(), "errors: there is not one for each value of the table"),
        (lambda errors: errors["omega"][1].pop(), r"errors: omega\[1\] has 1 values for 2 choices"),
        (lambda errors: errors["head"].clear(), "errors: there is not one for each value of the table"),
        (lambda errors: errors.update(hed=[]), "errors: hed is not known; did you mean head"),
    ],
)
def test_errors_that_make_no_sense_are_refused(
    change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "sensitivity.json"
    with_errors().save(path)
    content = json.loads(path.read_text())
    change(content["errors"])
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        SensitivityTable.load(path)


@pytest.mark.parametrize("omega", [((0.5,),), ((0.5, -0.1),), ((0.5, float("nan")),)])
def test_a_sensitivity_that_makes_no_sense_is_refused(omega: tuple) -> None:
    with pytest.raises(InputError, match=r"omega\[\d\].*choices|an indicator is a number of at least 0"):
        replace(TABLE, omega=omega)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((5, 64), "bits = 5"),
        ((4, 0), "16 bits has no groups"),
        ((16, 64), "16 bits has no groups"),
        ((4, 48), "must be a positive multiple of 32"),
        ((4, 64, "int8"), "only 'float' is implemented"),
    ],
)
def test_a_choice_that_is_none_is_refused(arguments: tuple, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Choice(*arguments)


def test_choices_are_read_with_their_defaults() -> None:
    assert Choice.from_json({"bits": 4}, "here") == Choice(4, 64)
    assert Choice.from_json({"bits": 16}, "here") == Choice(16, 0)
    for choice in (Choice(3, 32), Choice(16)):
        assert Choice.from_json(choice.to_json(), "here") == choice
    assert [str(choice) for choice in (Choice(3, 32), Choice(16))] == ["3g32", "16"]


@pytest.mark.parametrize("content", [{}, {"bits": 4, "groups": 1}, {"bits": True}, {"bits": 4, "group_size": 64.0}, 4])
def test_a_choice_with_other_keys_or_types_is_refused(content: dict) -> None:
    with pytest.raises(InputError, match="here"):
        Choice.from_json(content, "here")


def test_a_workload_knows_its_cache_and_its_micro_batches() -> None:
    workload = Workload(8, 64, 2)
    assert (workload.cache_tokens, workload.slot_tokens) == (65, 128)
    assert workload.micro_batch_sizes == (8, 4, 3, 2, 1)
