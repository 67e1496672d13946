"""Start supervisors for a test, wait for them with a deadline, and leave none of their processes behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hetero_infer.spec import UNQUANTISED, Device, Fleet, Plan, StagePlan, Workload

SCRIPT = Path(__file__).parent / "launch_fake.py"
DECODER_LAYERS = 4
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def make_plan(devices: Sequence[Device], stages: Sequence[str]) -> Plan:
    """One layer for each stage but the last, which has the rest."""
    layers = [1] * (len(stages) - 1) + [DECODER_LAYERS + 3 - len(stages)]
    return Plan(
        model={"path": "tiny", "digest": "", "num_hidden_layers": DECODER_LAYERS},
        devices=tuple(devices),
        workload=Workload(batch_size=4, prompt_tokens=8, new_tokens=9),
        stages=tuple(StagePlan(name, (UNQUANTISED,) * n) for name, n in zip(stages, layers, strict=True)),
        prefill_micro_batch_size=4,
        decode_micro_batch_size=4,
    )


def make_devices(*slots: int, hosts: Sequence[str] = ("localhost",)) -> list[Device]:
    """`slots[i]` devices on `hosts[i]`."""
    counts = zip(hosts, slots, strict=True)
    return [Device(host, slot, "cpu", 2**30, threads=slot + 1) for host, count in counts for slot in range(count)]


def make_fleet(devices: Sequence[Device], *replicas: Sequence[str]) -> Fleet:
    return Fleet(tuple(make_plan(devices, stages) for stages in replicas))


class RunFolder:
    """A config, a model folder, a hostfile and a plan in `path`, and the processes started on them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "run.toml"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.port, self.control_port = free_port(), free_port()
        model = path / "tiny"
        model.mkdir()
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
        fields = {"model_type": "llama", "num_hidden_layers": DECODER_LAYERS, "eos_token_id": 0}
        (model / "config.json").write_text(
            json.dumps(dict.fromkeys(sizes, 4) | fields | {"vocab_size": 100, "head_dim": 4})
        )
        self.set_hosts("localhost slots=3 # gpu=cpu memory=1GiB")
        self.config.write_text(
            f'[model]\npath = "{model}"\n[cluster]\nhostfile = "{path}/hostfile"\n'
            "[workload]\nbatch_size = 4\nprompt_tokens = 8\nnew_tokens = 9\n"
            f'[paths]\nwork = "{path}/out"\n[server]\nport = {self.port}\n'
        )
        (path / "out").mkdir()
        self.set_plan(make_plan(make_devices(3), ["localhost:0", "localhost:1", "localhost:2"]))

    def set_hosts(self, text: str) -> None:
        (self.path / "hostfile").write_text(text + "\n")

    def set_plan(self, plan: Plan | Fleet) -> None:
        plan.save(self.path / "prepared-plan.json")

    def batch(self, *prompts: list[int], **fields: object) -> list[str]:
        """Writes the batch file; returns the arguments that run it."""
        bodies = [{"prompt": prompt, "max_tokens": 3} | fields for prompt in prompts]
        lines = [
            {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
            for number, body in enumerate(bodies)
        ]
        (self.path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return ["batch", "-c", str(self.config), "-i", f"{self.path}/in.jsonl", "-o", f"{self.path}/out.jsonl"]

    @property
    def answers(self) -> list[list[int]]:
        lines = map(json.loads, (self.path / "out.jsonl").read_text().splitlines())
        return [line["response"]["body"]["choices"][0]["token_ids"] for line in lines]

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        with (self.path / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                command, env=clean | environment, stdout=stderr, stderr=stderr, start_new_session=True
            )
        self.processes.append(process)
        return process

    def start_supervisors(
        self, arguments: Sequence[str], world_size: int = 3, ranks: Sequence[int] = (), **environment: str
    ) -> None:
        """As DeepSpeed's launcher would on one host."""
        for rank in ranks or range(world_size):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.control_port)}
            self.start(
                [sys.executable, str(SCRIPT), f"--local_rank={rank}", *arguments], **place, **master, **environment
            )

    def wait(self, deadline_s: float = 20) -> list[int]:
        """The exit codes, once all have ended and nothing of them is left."""
        wait_until(lambda: all(process.poll() is not None for process in self.processes), deadline_s, self.said)
        wait_until(lambda: not self.left_over(), 3, lambda: f"left over: {self.left_over()}\n{self.said()}")
        return [process.returncode for process in self.processes]

    def worker(self, slot: int) -> dict:
        """What the fake worker of a slot of localhost noted about itself, once it did."""
        path = self.path / f"worker-localhost:{slot}.json"
        wait_until(lambda: path.exists() and path.stat().st_size > 0, 20, self.said)
        return json.loads(path.read_text())

    def wait_for_first_answer(self) -> None:
        part = self.path / "out.jsonl.part"
        wait_until(lambda: part.exists() and part.stat().st_size > 0, 20, self.said)

    def said(self) -> str:
        return (self.path / "stderr").read_text()

    def left_over(self) -> list[int]:
        """Every process that has this folder in its command line."""
        return [pid for pid, command in running_commands() if str(self.path) in command]

    def clean_up(self) -> None:
        for pid in self.left_over():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(5)


def running_commands() -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def wait_until(condition: Callable[[], bool], deadline_s: float, explain: Callable[[], str]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < deadline_s, f"not within {deadline_s} s:\n{explain()}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
