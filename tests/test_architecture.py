"""The floors of the building: which package may import which, and who may import what from outside."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import hetero_infer

ROOT = Path(hetero_infer.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# What each package may import besides itself. Files that stand in no package (cli, prepare, report) may import all.
FLOORS = {
    "spec": set(),
    "cost": {"spec"},
    "quant": {"spec"},
    "planner": {"cost", "spec"},
    "models": {"quant", "spec"},
    "checkpoint": {"models", "quant", "spec"},
    "measure": {"checkpoint", "models", "quant", "cost", "spec"},
    "pipeline": {"checkpoint", "models", "quant", "cost", "spec"},
    "supervisor": {"spec", "serving"},
    "serving": {"spec", "supervisor"},
    "bench": {
        "spec",
        "cost",
        "planner",
        "pipeline",
        "supervisor",
        "checkpoint",
        "measure",
        "models",
        "quant",
        "report",
    },
    "page": {"spec", "cost", "planner", "pipeline", "report"},
}

# (file, module): why it may.
EXCEPTIONS = {
    ("pipeline/worker.py", "supervisor.channel"): "the worker's end of the line to its supervisor; standard library",
    ("measure/worker.py", "supervisor.channel"): "the same",
}

BENCH_MODELS = ("bench/planner/random_model.py", "bench/quality/stories260k.py")  # they write model folders

# Where each package from outside may be imported. What does not stand here is imported nowhere.
HOMES = {
    "torch": ("quant/", "models/", "checkpoint/", "measure/", "pipeline/", *BENCH_MODELS),
    "deepspeed": ("pipeline/",),
    "pyomo": ("planner/",),
    "highspy": ("planner/fleet/linear_program.py",),  # thousands of small programmes, solved again and again
    "numpy": ("planner/", "cost/regression.py"),
    "scipy": ("planner/", "cost/regression.py"),  # least squares with no term below zero
    "auto_gptq": ("quant/gptq.py",),
    "safetensors": ("checkpoint/", *BENCH_MODELS),
    "tokenizers": ("checkpoint/text.py",),
    "transformers": ("checkpoint/text.py", "serving/tokenizer.py"),
    "tqdm": ("checkpoint/", "measure/", "serving/progress.py"),
    "starlette": ("serving/http.py",),
    "uvicorn": ("serving/http.py",),
    "mpi4py": ("supervisor/place.py",),
}


@dataclass(frozen=True)
class Import:
    line: int
    module: str


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Wherever they stand, in functions and under `if TYPE_CHECKING` too; `file` is relative to the package."""
    package = ["hetero_infer", *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            if module == "hetero_infer":
                yield from (Import(node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield Import(node.lineno, module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            name = node.args[0]
            yield Import(node.lineno, name.value if isinstance(name, ast.Constant) else f"({ast.unparse(name)})")


def violations(file: str, source: str) -> list[str]:
    """A sentence for each import of `file` that the rules above don't allow."""
    found = []
    package = Path(file).parts[0]
    for entry in imports_of(source, file):
        top, _, rest = entry.module.partition(".")
        target = rest.partition(".")[0]
        where = f"hetero_infer/{file}:{entry.line}"
        if top == "hetero_infer":
            is_free = package not in FLOORS or target in ("", package, "__version__")
            if not is_free and target not in FLOORS[package] and (file, rest) not in EXCEPTIONS:
                found.append(f"{where}: {package} stands below {target} or beside it, and imports {entry.module}")
        elif package == "spec" and top not in sys.stdlib_module_names:
            found.append(f"{where}: spec imports {top}, which is not in the standard library")
        elif top not in sys.stdlib_module_names and not file.startswith(HOMES.get(top, ())):
            found.append(f"{where}: {top} may be imported in {', '.join(HOMES.get(top, ())) or 'no file'}")
    return found


def test_every_module_keeps_to_its_floor() -> None:
    found = [line for path in SOURCES for line in violations(path.relative_to(ROOT).as_posix(), path.read_text())]
    assert not found, "\n".join(found)


def test_every_package_has_a_floor() -> None:
    packages = {path.parent.relative_to(ROOT).parts[0] for path in SOURCES if path.parent != ROOT}
    assert packages == FLOORS.keys()


def test_no_rule_is_left_over() -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in SOURCES}
    imported = {(file, entry.module) for file, source in sources.items() for entry in imports_of(source, file)}
    assert {(file, f"hetero_infer.{module}") for file, module in EXCEPTIONS} <= imported
    for top, homes in HOMES.items():
        for home in homes:
            assert any(file.startswith(home) and module.split(".")[0] == top for file, module in imported), (top, home)


def test_no_floor_is_above_itself() -> None:
    pairs = {(low, high) for low, allowed in FLOORS.items() for high in allowed}
    assert {pair for pair in pairs if pair[::-1] in pairs} == {("supervisor", "serving"), ("serving", "supervisor")}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("spec/plan.py", "import numpy"),
        ("spec/plan.py", "from hetero_infer.cost import memory"),
        ("cost/memory.py", "import torch"),
        ("cost/memory.py", "from hetero_infer.planner.check import check_plan"),
        ("quant/linear.py", "from hetero_infer.cost.memory import linear_bytes"),
        ("planner/search.py", "def f():\n    import torch.nn"),
        ("planner/search.py", "from hetero_infer.quant import packing"),
        ("planner/search.py", "import highspy"),  # Pyomo speaks to it
        ("models/llama.py", "from hetero_infer.checkpoint.loading import load_layer"),
        ("models/llama.py", "from hetero_infer import cli"),
        ("models/llama.py", "from ..pipeline import engine"),
        ("checkpoint/quantise.py", "from transformers import AutoModel"),
        ("checkpoint/quantise.py", "from auto_gptq.quantization.gptq import GPTQ"),
        ("quant/linear.py", "import auto_gptq"),
        ("measure/indicators/table.py", "from hetero_infer.pipeline import stage"),
        ("measure/indicators/table.py", "import pyomo.environ as pyo"),
        ("pipeline/engine.py", "from hetero_infer.supervisor.channel import WorkerChannel"),  # only the worker may
        ("pipeline/worker.py", "from hetero_infer.supervisor.child import start_child"),  # only the channel
        ("pipeline/stage.py", "import importlib\nimportlib.import_module('transformers')"),
        ("pipeline/stage.py", "from hetero_infer.measure import layer_timer"),
        ("checkpoint/loading.py", "import deepspeed"),
        ("supervisor/member.py", "import torch"),
        ("supervisor/member.py", "from hetero_infer.pipeline import worker"),
        ("serving/http.py", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("serving/request.py", "__import__(name)"),
        ("cli.py", "import torch"),
        ("report.py", "import left_pad"),
    ],
)
def test_a_breach_is_found(file: str, source: str) -> None:
    assert len(violations(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("planner/search.py", "from hetero_infer.cost.memory import plan_memory\nimport itertools\nimport numpy"),
        ("supervisor/coordinator.py", "from hetero_infer import __version__\nimport hetero_infer"),
        ("pipeline/worker.py", "from hetero_infer.supervisor.channel import WorkerChannel"),
        ("cli.py", "from hetero_infer import prepare\nfrom hetero_infer.pipeline.simulate import draw_grid"),
        ("models/llama.py", "from . import attention\nfrom .layers import LayerDefinition"),
    ],
)
def test_what_is_allowed_is_not_reported(file: str, source: str) -> None:
    assert violations(file, source) == []


# What an import takes with it, also through others. Each set names what must come, so that the question is not void.


def loaded_by(statements: Iterable[str]) -> set[str]:
    """The top-level modules that a fresh process has after these statements."""
    code = "; ".join([*statements, "import sys, json", "print(json.dumps([name for name in sys.modules]))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("modules", "present", "absent"),
    [
        (
            ("pipeline.worker", "pipeline.stage", "pipeline.engine", "pipeline.rehearsal"),
            {"torch", "deepspeed"},
            {"auto_gptq", "transformers", "pyomo", "highspy"},
        ),
        (
            ("planner.search", "planner.check", "planner.answers.explain", "cost.latency"),
            {"pyomo"},
            {"torch", "deepspeed", "transformers"},
        ),
        (("planner.check", "cost.latency", "report"), {"csv"}, {"numpy", "scipy", "pyomo", "torch"}),
        (("supervisor.supervise", "serving.http", "serving.batch_file"), {"uvicorn"}, {"torch", "pyomo", "deepspeed"}),
        (("cli", "prepare"), {"argparse"}, {"torch", "pyomo", "deepspeed", "uvicorn"}),
    ],
    ids=["runtime", "planner", "check", "supervisor", "command"],
)
def test_an_import_takes_with_it_only_what_it_needs(modules: tuple[str, ...], present: set, absent: set) -> None:
    loaded = loaded_by(f"import hetero_infer.{module}" for module in modules)
    assert present <= loaded
    assert not absent & loaded


@pytest.mark.processes
def test_a_tokenizer_comes_without_torch() -> None:
    loaded = loaded_by(
        [
            "from hetero_infer.serving.tokenizer import Tokenizer",
            "from hetero_infer.spec.config import DEMO_MODEL",
            "tokenizer = Tokenizer.from_folder(DEMO_MODEL)",
            "tokenizer._tokenizer.chat_template = '{{ messages }}'",
            "tokenizer.apply_chat_template([{'role': 'user', 'content': tokenizer.decode(tokenizer.encode('a'))}])",
        ]
    )
    assert {"transformers", "jinja2"} <= loaded
    assert not {"torch", "tensorflow", "flax"} & loaded
