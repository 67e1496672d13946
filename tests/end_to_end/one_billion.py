"""A Llama of 1.1 billion random weights over three memory budgets that together are smaller than its fp16 weights.

    python -m tests.end_to_end.one_billion [WORK]

Makes the model under WORK (default: out/one-billion, 2.2 GB), plans, quantises what the plan needs, answers a batch
through the `deepspeed` launcher, and prints each process's peak memory beside the plan's figure. Needs some 6 GiB of
memory and half an hour on two cores; a second run uses what is there. Exits with 1 if a process passed its budget.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from hetero_infer.models import layers_of
from hetero_infer.report import text_table
from hetero_infer.spec import UNQUANTISED, ModelSpec, Plan
from hetero_infer.spec.config import DEMO_MODEL

MIB = 2**20
BIN = Path(sys.executable).parent
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
BUDGETS_MIB = (700, 560, 700)
RUN = """
[model]
path = "{model}"
[cluster]
hostfile = "{work}/hostfile"
[workload]
batch_size = 4
prompt_tokens = 64
new_tokens = 8
[quality]
calibration_windows = 8
calibration_tokens = 128
[paths]
work = "{work}"
"""


def main() -> int:
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "out/one-billion").resolve()
    model = make_model(work / "model")
    budgets = ",".join(f"{budget}MiB" for budget in BUDGETS_MIB)
    (work / "hostfile").write_text(f"localhost slots=3  # gpu=cpu slowdown=1,1.5,2 memory={budgets} threads=1\n")
    (work / "run.toml").write_text(RUN.format(model=model, work=work))
    write_prompts(work / "in.jsonl")
    run("hetero-infer", "plan", "-c", work / "run.toml")
    said = run(
        *("deepspeed", "--hostfile", work / "hostfile", "--no_ssh_check", "--master_addr", "127.0.0.1", "--quiet"),
        *("launch/batch.py", "-c", work / "run.toml", "--plan", work / "plan.json"),
        *("-i", work / "in.jsonl", "-o", work / "out.jsonl"),
    )
    peaks_mib = [float(peak) for peak in re.findall(r"at most (\S+) MiB", said)]
    plan = Plan.load(work / "plan.json")
    print(memory_table(plan, peaks_mib))
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    print(f"budgets together {sum(BUDGETS_MIB)} MiB, fp16 weights on disk {weights / MIB:.0f} MiB")
    budgets_mib = [plan.device_of(stage).memory_bytes / MIB for stage in range(len(plan.stages))]
    return int(any(peak > budget for peak, budget in zip(peaks_mib, budgets_mib, strict=True)))


def make_model(folder: Path) -> Path:
    """A file per layer, so that no more than one is in memory here."""
    spec = ModelSpec.from_config(CONFIG, "one billion")
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return folder
    generator = torch.Generator().manual_seed(0)
    file_of: dict[str, str] = {}
    for number, definition in enumerate(layers_of(spec)):
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in definition.build(UNQUANTISED).state_dict().items()}
        tensors = {
            definition.tensor(name): (
                torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)
            ).half()
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / f"layer-{number:02}.safetensors", {"format": "pt"})
        file_of |= dict.fromkeys(tensors, f"layer-{number:02}.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    for name in ("tokenizer.json", "calibration.txt", "heldout.txt"):
        shutil.copy(DEMO_MODEL / name, folder)
    index.write_text(json.dumps({"weight_map": file_of}))
    return folder


def write_prompts(path: Path) -> None:
    """A batch of full length."""
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": [(7 * number + 13 * i) % 32000 for i in range(64)], "max_tokens": 8},
        }
        for number in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(command: str, *arguments: object) -> str:
    """What it said on stderr, which is shown too."""
    words = [str(BIN / command), *map(str, arguments)]
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path, "DS_ACCELERATOR": "cpu"}
    said = []
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            said.append(line)
    if process.returncode:
        raise SystemExit(process.returncode)
    return "".join(said)


def memory_table(plan: Plan, peaks_mib: list[float]) -> str:
    assert plan.estimate
    rows = [
        ("stage", "weights", "KV cache", "workspace", "planned MiB", "measured peak MiB", "measured/planned", "budget")
    ]
    for stage, parts in enumerate(plan.estimate.memory_bytes):
        planned, peak = plan.estimate.memory_of(stage) / MIB, peaks_mib[stage]
        rows.append(
            (
                str(stage),
                *(f"{parts[part] / MIB:.1f}" for part in ("weights", "kv_cache", "workspace")),
                f"{planned:.1f}",
                f"{peak:.1f}",
                f"{peak / planned:.3f}",
                f"{plan.device_of(stage).memory_bytes / MIB:.0f}",
            )
        )
    return text_table(rows)


if __name__ == "__main__":
    sys.exit(main())
