"""Run the sections of a bench one after the other, print each, and keep all in one file as it goes on."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from hetero_infer.bench.section import Section
from hetero_infer.report import text_table
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.files import write_atomically

Measure = Callable[[Path], Section]
PACKAGES = ("pyomo", "highspy", "numpy", "scipy", "torch", "deepspeed", "transformers", "auto-gptq")
FORMAT = 1


def run(
    sections: Mapping[str, Measure], shared: Path, output: Path, only: Iterable[str], tables: TextIO
) -> dict[str, Any]:
    """What `output` then holds: JSON, written after each section. `only` names some of them; `tables` is for people."""
    unknown = set(only) - sections.keys()
    if unknown:
        raise InputError(f"--only {', '.join(sorted(unknown))}: the sections are {', '.join(sections)}")
    if not shared.is_dir():
        raise InputError(
            f"{shared}: the published data that the bench compares with is not there; HETERO_INFER_SHARED names its "
            "folder"
        )
    wanted = [name for name in sections if name in set(only)] or list(sections)
    content: dict[str, Any] = {"format": FORMAT, **circumstances(), "sections": {}}
    for name in wanted:
        started_s = time.monotonic()
        section = sections[name](shared)
        seconds = time.monotonic() - started_s
        print(f"{as_text(section)}\n({name}: {seconds:.0f} s)\n", file=tables, flush=True)
        content["sections"][name] = asdict(section) | {"seconds": seconds}
        write_atomically(output, json.dumps(content, indent=1, default=str) + "\n")
    return content


def as_text(section: Section) -> str:
    """Its title, its table, and a line for each demand and note."""
    demands = [f"{'met' if demand.is_met else 'NOT MET'}: {demand.says}" for demand in section.demands]
    table = text_table([list(section.header), *map(list, section.rows)])
    return "\n".join([section.title, table, *demands, *section.notes])


def circumstances() -> dict[str, object]:
    """When, where and with what."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "command": " ".join(["hetero-infer", *sys.argv[1:]]),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that this runs from; None where it is none."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
