"""Ctrl-C at any moment: one line, exit code 1, whole files only, and the next run goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hetero_infer.cli import main
from tests.mistakes.test_mistakes import snapshot
from tests.supervisor.running import wait_until

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
PLAN, QUANTIZE = ("plan",), ("quantize", "out/plan.json")


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command, "-c", "run.toml"],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def assert_one_line(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert err.splitlines()[-1] == "hetero-infer: interrupted" and "Traceback" not in err
    assert "KeyboardInterrupt" not in err and out == ""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("moment", "command", "lacks"),
    [
        ("import:hetero_infer.cli", PLAN, "plan.json"),
        ("import:tomllib", PLAN, "plan.json"),
        ("import:torch", PLAN, "plan.json"),
        ("import:torch.nn.functional", PLAN, "plan.json"),
        ("call:hetero_infer.measure.indicators.probes:probe_losses", PLAN, "sensitivity.json"),
        ("call:hetero_infer.measure.layer_timer:_suffices", PLAN, "profile.csv"),
        ("import:pyomo.environ", PLAN, "plan.json"),
        ("call:pyomo.contrib.solver.solvers.highs:Highs._solve", PLAN, "plan.json"),
        ("call:os:fsync", PLAN, "plan.json"),
        ("call:os:replace", PLAN, "plan.json"),
        ("import:auto_gptq", QUANTIZE, ""),
    ],
)
def test_it_ends_with_one_line_and_the_next_run_goes_on(
    moment: str, command: tuple[str, ...], lacks: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if lacks:
        (folder / "out" / lacks).unlink()
    before = snapshot(folder)
    assert_one_line(start(folder, "tests.mistakes.interrupted", moment, *command))
    assert snapshot(folder) == before
    assert main([*command, "-c", "run.toml"]) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.processes
def test_layers_that_were_quantised_are_there_and_are_used_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(folder, "hetero_infer", *QUANTIZE)
    checkpoint = folder / "out" / "checkpoint"
    wait_until(lambda: any(checkpoint.glob("layer*.safetensors")), 120, lambda: f"ended with {process.poll()}")
    process.send_signal(signal.SIGINT)
    assert_one_line(process)
    first = min(checkpoint.glob("layer*.safetensors"))
    written_ns = first.stat().st_mtime_ns
    assert not list(checkpoint.glob(".*"))
    assert main([*QUANTIZE, "-c", "run.toml"]) == 0
    assert first.stat().st_mtime_ns == written_ns
    capsys.readouterr()
    assert main(["evaluate", "out/checkpoint", "-c", "run.toml"]) == 0


@pytest.mark.processes
def test_it_is_not_lost_where_python_drops_what_is_raised(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from hetero_infer.ctrl_c import end_with_one_line
end_with_one_line()
class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))
Dropped()
time.sleep(60)
"""
    process = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=50)
    assert (process.returncode, process.stderr) == (1, "hetero-infer: interrupted\n")


@pytest.mark.processes
def test_an_error_that_is_no_interrupt_keeps_its_traceback() -> None:
    code = "from hetero_infer.ctrl_c import end_with_one_line; end_with_one_line(); 1 / 0"
    process = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=50)
    assert process.returncode == 1 and "ZeroDivisionError" in process.stderr
