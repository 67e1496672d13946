"""A full disk and a read-only one: one line that names the path, exit code 1, and nothing half written."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hetero_infer.cli import main
from tests.mistakes.test_ctrl_c import ENVIRONMENT
from tests.mistakes.test_mistakes import snapshot

WRITING = [
    ("full", "out/plan.json", ("plan",), "disk/plan.json"),
    ("full", "out/sensitivity.json", ("sensitivity",), "disk/sensitivity.json"),
    ("full", "out/profile.csv", ("measure",), "disk/profile.csv"),
    ("full", "", ("quantize", "out/plan.json"), "disk/layer000-"),
    ("read-only", "out/plan.json", ("plan",), "disk/plan.json"),
    ("read-only", "", ("quantize", "out/plan.json"), "disk/layer000-"),
]


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, of 192 KiB."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    path = disk / "filler"
    with path.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    os.truncate(path, path.stat().st_size - leave_bytes)
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("hetero-infer: ")]
    assert "Traceback" not in err
    return line


@pytest.mark.parametrize(("state", "made", "command", "path"), WRITING, ids=[f"{w[2][0]}-{w[0]}" for w in WRITING])
def test_a_disk_that_takes_nothing_is_named(
    state: str, made: str, command: tuple[str, ...], path: str, folder: Path, disk: Path, capsys
) -> None:
    if made:  # else it is made already, and not written
        (folder / made).unlink()
    if state == "full":
        fill(disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = snapshot(folder)
    output = "disk" if command[0] == "quantize" else path
    assert main([*command, "-o", output, "-c", "run.toml"]) == 1
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[state]
    line = one_line(capsys)
    assert path in line and f"cannot be written ({reason}); make room there, or name another place" in line
    assert snapshot(folder) == before


def test_quantising_goes_on_where_the_disk_was_full(folder: Path, disk: Path, capsys) -> None:
    filler = fill(disk, leave_bytes=96 * 1024)
    command = ["quantize", "out/plan.json", "-o", "disk", "-c", "run.toml"]
    assert main(command) == 1
    assert "disk/layer" in one_line(capsys)
    shards = {path: path.stat().st_mtime_ns for path in disk.glob("layer*")}
    assert shards and not list(disk.glob(".*"))
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert main(["evaluate", "disk", "-c", "run.toml"]) == 0


@pytest.mark.parametrize(
    ("place", "exit_code", "reason"),
    [("text.txt/plan.json", 1, "cannot be written (File exists)"), ("out", 2, "cannot be read (Is a directory)")],
)
def test_an_output_that_cannot_be_is_named(place: str, exit_code: int, reason: str, folder: Path, capsys) -> None:
    before = snapshot(folder)
    assert main(["plan", "-o", place, "-c", "run.toml"]) == exit_code
    line = one_line(capsys)
    assert f"{place}: {reason}" in line
    assert snapshot(folder) == before


def test_an_output_over_the_model_is_refused(folder: Path, capsys) -> None:
    before = snapshot(folder)
    assert main(["sensitivity", "-o", "tiny/config.json", "-c", "run.toml"]) == 2
    assert "the model's config.json and sensitivity are both tiny/config.json" in one_line(capsys)
    assert snapshot(folder) == before


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [("check", "out/plan.json"), ("check", "out/plan.json", "--json")])
def test_a_result_that_cannot_be_printed_is_one_line(arguments: tuple[str, ...], folder: Path) -> None:
    command = [sys.executable, "-m", "hetero_infer", *arguments, "-c", "run.toml"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "hetero-infer: standard output: No space left on device\n")
