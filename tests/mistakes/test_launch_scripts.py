"""`launch/batch.py` and `launch/serve.py`, each started alone and so rank 0 of 1, with one thing wrong."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervisor.running import LAUNCHER_VARIABLES, SCRIPT, RunFolder, make_devices, make_plan, wait_until

HANG = 99  # the first token that makes the fake worker wait for its end
ROOT = Path(__file__).parent.parent.parent
SERVE = "serve"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path)
    folder.set_hosts("localhost slots=1 # gpu=cpu memory=1GiB")
    folder.set_plan(make_plan(make_devices(1), ["localhost:0"]))
    folder.batch([1, 2])
    try:
        yield folder
    finally:
        folder.clean_up()


def started(run: RunFolder, *arguments: object, **environment: str) -> tuple[int, str]:
    """The exit code, and the last line said."""
    run.start([sys.executable, str(SCRIPT), *map(str, arguments)], **environment)
    (exit_code,) = run.wait(60)
    assert "Traceback" not in run.said()
    return exit_code, run.said().splitlines()[-1]


def batch(run: RunFolder, *more: object, output: str = "out.jsonl") -> tuple[int, str]:
    return started(run, "batch", "-c", run.config, "-i", run.path / "in.jsonl", "-o", run.path / output, *more)


def write(run: RunFolder, file: str, content: str) -> Path:
    (run.path / file).write_text(content)
    return run.path / file


@pytest.mark.processes
@pytest.mark.parametrize(
    ("file", "content", "exit_code", "says"),
    [
        ("run.toml", None, 2, "run.toml: cannot be read (No such file or directory)"),
        ("run.toml", "[model]\npth = 'x'", 2, "[model] path is missing; is pth meant to be path?"),
        ("hostfile", None, 2, "hostfile: cannot be read"),
        ("hostfile", "localhost slots=x", 2, "hostfile, line 1: 'localhost slots=x' does not read 'host slots=N'"),
        ("hostfile", "localhost slots=3 # gpu=cpu memory=1GiB", 2, "localhost: 3, those that joined are"),
        ("prepared-plan.json", "{}", 2, "plan.json: format None, this version reads format 1"),
        ("in.jsonl", None, 2, "in.jsonl: No such file or directory"),
        ("tiny/config.json", "{", 2, "config.json: not JSON"),
        ("tiny/tokenizer.json", "{}", 2, "transformers cannot load its tokenizer"),
    ],
)
def test_a_mistake_ends_a_batch_with_one_line(
    run: RunFolder, file: str, content: str | None, exit_code: int, says: str
) -> None:
    if content is None:
        (run.path / file).unlink()
    else:
        write(run, file, content)
    code, line = batch(run)
    assert line.startswith("hetero-infer: ") and says in line
    assert code == exit_code
    assert not list(run.path.glob("out.jsonl*"))


@pytest.mark.processes
def test_an_output_that_cannot_be_written_is_named(run: RunFolder) -> None:
    code, line = batch(run, output="no/out.jsonl")
    assert code == 2 and "no/out.jsonl: the folder" in line and "is not there or not writable" in line


@pytest.mark.processes
def test_a_disk_that_fills_up_ends_the_batch_and_is_named(run: RunFolder) -> None:
    (run.path / "out.jsonl.part").symlink_to("/dev/full")
    code, line = batch(run)
    assert code == 1 and "out.jsonl.part: cannot be written (No space left on device); make room there" in line
    assert not (run.path / "out.jsonl").exists()


@pytest.mark.processes
def test_a_summary_that_cannot_be_written_is_named(run: RunFolder) -> None:
    code, line = batch(run, "--summary", run.path / "in.jsonl" / "summary.json")
    assert code == 1 and "in.jsonl/summary.json: cannot be written" in line
    assert len((run.path / "out.jsonl").read_text().splitlines()) == 1  # the answers are there


@pytest.mark.processes
def test_a_plan_for_other_hosts_is_refused(run: RunFolder) -> None:
    make_plan(make_devices(2, hosts=["far"]), ["far:0", "far:1"]).save(run.path / "other.json")
    code, line = batch(run, "--plan", run.path / "other.json")
    assert code == 2 and "the plan's hosts and slots are far: 2, those that joined are" in line


@pytest.mark.processes
def test_a_port_in_use_is_named(run: RunFolder) -> None:
    with socket.create_server(("127.0.0.1", run.port)):
        code, line = started(run, SERVE, "-c", run.config)
    assert code == 2
    assert f"cannot serve on 127.0.0.1:{run.port} (Address already in use" in line


@pytest.mark.processes
def test_a_launcher_that_says_half_is_refused(run: RunFolder) -> None:
    code, line = started(run, SERVE, "-c", run.config, RANK="0", WORLD_SIZE="2")
    assert code == 2 and "the launcher set RANK and WORLD_SIZE, but not 'MASTER_ADDR'" in line


@pytest.mark.processes
@pytest.mark.parametrize(("script", "exit_code"), [("batch", 75), ("serve", 0)])
def test_ctrl_c_while_a_script_imports_is_one_line(script: str, exit_code: int, tmp_path: Path) -> None:
    code = (
        "import runpy, sys; from tests.mistakes.interrupted import BeforeImport\n"
        "sys.meta_path.insert(0, BeforeImport('hetero_infer.supervisor.supervise'))\n"
        f"runpy.run_path('launch/{script}.py', run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code, "-i", "in", "-o", "out"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (exit_code, b"hetero-infer: interrupted\n")


@pytest.mark.processes
def test_ctrl_c_while_a_batch_is_answered_keeps_the_answers_apart(run: RunFolder) -> None:
    arguments = run.batch([1, 2], [HANG, 2])
    process = run.start([sys.executable, str(SCRIPT), *arguments])
    wait_until(lambda: (run.path / "out.jsonl.part").exists() or process.poll() is not None, 60, run.said)
    process.send_signal(signal.SIGINT)
    (exit_code,) = run.wait(60)
    assert exit_code == 75 and run.said().splitlines()[-1] == "hetero-infer: interrupted, stopping"
    assert "Traceback" not in run.said() and not (run.path / "out.jsonl").exists()
