"""`RunConfig`: one TOML file that drives every command. Relative paths in it start at the current folder."""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hetero_infer.spec.choice import BITWIDTHS, DEFAULT_GROUP_SIZE, UNQUANTISED, Choice
from hetero_infer.spec.cluster import Cluster, Link
from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import kinds_of, nearest, read_value
from hetero_infer.spec.files import read_text
from hetero_infer.spec.gptq import GptqOptions
from hetero_infer.spec.links import LinkTable
from hetero_infer.spec.model import TOKENIZER_FILES, ModelSpec
from hetero_infer.spec.objective import Objective
from hetero_infer.spec.sensitivity import METHODS
from hetero_infer.spec.workload import Workload

MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", *TOKENIZER_FILES)
DEMO_MODEL = Path(__file__).parent.parent / "demo"
DEFAULT_LINK = {"alpha_s": 1e-4, "bytes_per_s": 1e9}
DECODER_BITS, END_BITS = BITWIDTHS, (16,)  # the choices where none are said
DEFAULT_CHOICES = (*(Choice(bits, DEFAULT_GROUP_SIZE) for bits in DECODER_BITS if bits < 16), UNQUANTISED)
REQUIRED = object()


@dataclass(frozen=True)
class RunConfig:
    model: Path
    hostfile: Path
    default_link: Link
    links: Path
    profile: Path
    batch_size: int
    longest: Workload | None
    requests: Path | None
    arrivals: Path | None
    max_perplexity_increase: float
    text: Path
    calibration: Path
    calibration_windows: int
    calibration_tokens: int
    choices: tuple[Choice, ...]
    embedding_choices: tuple[Choice, ...]
    head_choices: tuple[Choice, ...]
    gptq: GptqOptions
    sensitivity: Path
    indicator: str
    checkpoint: Path
    plan: Path
    planner_time_limit_s: float
    planner_gap: float
    planner_objective: Objective
    planner_replicas: int | None  # None: one or several, whichever is faster
    host: str
    port: int

    @property
    def workload(self) -> Workload:
        """What a plan admits: a batch of the longest requests."""
        if self.longest is None:
            raise InputError(
                f"[workload] the lengths are in {self.requests or self.arrivals} only; say prompt_tokens and "
                "new_tokens too, up to which to measure"
            )
        return self.longest

    @property
    def cluster(self) -> Cluster:
        """The hostfile's devices, with the links that were measured: a file that is not there is not made yet."""
        links = LinkTable.load_if_there(self.links).links
        return replace(Cluster.from_hostfile(self.hostfile, self.default_link), links=links)

    @classmethod
    def load(cls, path: Path) -> "RunConfig":
        try:
            content = tomllib.loads(read_text(path, "config"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"config {path}: not TOML ({error})") from error
        return cls.from_toml(content, f"config {path}")

    @classmethod
    def from_toml(cls, content: Mapping[str, Any], where: str) -> "RunConfig":
        reader = _Reader(content, where)
        model = reader.take("model", "path", str)
        model_folder = DEMO_MODEL if model == "demo" else Path(model)
        work = Path(reader.take("paths", "work", str, "out"))
        link = reader.take("cluster", "default_link", dict, DEFAULT_LINK)
        if set(link) != {"alpha_s", "bytes_per_s"} or {type(value) for value in link.values()} - {int, float}:
            raise InputError(f"{where}: default_link has alpha_s and bytes_per_s, both numbers, got {link}")
        with located(where):
            default_link = Link(**link)
        requests, arrivals = (reader.path_if_said("workload", key) for key in ("requests", "arrivals"))
        if requests and arrivals:
            raise InputError(f"{where}: [workload] has requests and arrivals; a plan is for one of them")
        objective = reader.take("planner", "objective", str, Objective.STEADY if arrivals else Objective.RING)
        if objective not in list(Objective):
            raise InputError(f"{where}: objective = {objective!r}; it is one of {', '.join(Objective)}")
        length_keys = ("prompt_tokens", "new_tokens")
        batch_size, longest = reader.take("workload", "batch_size", int), None
        if not (requests or arrivals) or reader.says_one("workload", length_keys):
            lengths = [reader.take("workload", key, int) for key in length_keys]
            with located(where):
                longest = Workload(batch_size, *lengths)
        config = cls(
            model=model_folder,
            hostfile=Path(reader.take("cluster", "hostfile", str)),
            default_link=default_link,
            links=Path(reader.take("cluster", "links", str, str(work / "links.csv"))),
            profile=Path(reader.take("cluster", "profile", str, str(work / "profile.csv"))),
            batch_size=batch_size,
            longest=longest,
            requests=requests,
            arrivals=arrivals,
            max_perplexity_increase=float(reader.take("quality", "max_perplexity_increase", float, 0.1)),
            text=Path(reader.take("quality", "text", str, str(model_folder / "heldout.txt"))),
            calibration=Path(reader.take("quality", "calibration", str, str(model_folder / "calibration.txt"))),
            calibration_windows=reader.take("quality", "calibration_windows", int, 32),
            calibration_tokens=reader.take("quality", "calibration_tokens", int, 256),
            choices=reader.choices("quality", "choices", DECODER_BITS),
            embedding_choices=reader.choices("quality", "embedding", END_BITS),
            head_choices=reader.choices("quality", "head", END_BITS),
            gptq=reader.gptq_options(),
            sensitivity=Path(reader.take("quality", "sensitivity", str, str(work / "sensitivity.json"))),
            indicator=reader.take("quality", "indicator", str, METHODS[0]),
            checkpoint=Path(reader.take("paths", "checkpoint", str, str(work / "checkpoint"))),
            plan=Path(reader.take("paths", "plan", str, str(work / "plan.json"))),
            planner_time_limit_s=float(reader.take("planner", "time_limit_s", float, 60)),
            planner_gap=float(reader.take("planner", "gap", float, 1e-3)),
            planner_objective=Objective(objective),
            planner_replicas=reader.number_or_auto("planner", "replicas", 1),
            host=reader.take("server", "host", str, "127.0.0.1"),
            port=reader.take("server", "port", int, 8000),
        )
        reader.refuse_the_rest()
        with located(where):
            config._refuse_contradictions()
        return config

    def for_model(self, spec: ModelSpec) -> "RunConfig":
        """Where the model is quantised already: with the choices it has, and without an allowance, for there is nothing
        left that could be worse than it."""
        if not spec.stored_choices:
            return self
        stored = sorted(set(spec.stored_choices))
        if self.choices != DEFAULT_CHOICES and not set(stored) <= set(self.choices):
            raise InputError(
                f"[quality] choices: the model {self.model} is quantised already and has "
                f"{', '.join(map(str, stored))}; leave choices out"
            )
        for name, choices in (("embedding", self.embedding_choices), ("head", self.head_choices)):
            if UNQUANTISED not in choices:
                raise InputError(
                    f"[quality] {name}: the model {self.model} is quantised already and has it at 16 bits; leave "
                    f"{name} out"
                )
        ends = (UNQUANTISED,)
        return replace(
            self, choices=tuple(stored), embedding_choices=ends, head_choices=ends, max_perplexity_increase=0.0
        )

    def writing_to(self, name: str, path: Path | None) -> "RunConfig":
        """With `path`, if one was given, in place of the file or folder `name`."""
        changes: dict[str, Any] = {name: path or getattr(self, name)}
        config = replace(self, **changes)
        config._refuse_contradictions()
        return config

    def _refuse_contradictions(self) -> None:
        for name in ("calibration_windows", "calibration_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"[quality] {name} = {getattr(self, name)}, must be at least 1")
        if self.max_perplexity_increase < 0:
            raise InputError(f"max_perplexity_increase = {self.max_perplexity_increase}, must not be negative")
        if self.indicator not in METHODS:
            raise InputError(f"[quality] indicator = {self.indicator!r}; it is one of {', '.join(METHODS)}")
        if self.planner_time_limit_s <= 0:
            raise InputError(f"[planner] time_limit_s = {self.planner_time_limit_s:g}, must be above 0")
        if (self.planner_objective is Objective.STEADY) != bool(self.arrivals):
            raise InputError(
                f"[planner] objective = {self.planner_objective}: 'steady' is for [workload] arrivals, the others are "
                "for batches"
            )
        if self.planner_replicas is not None and self.planner_replicas < 1:
            raise InputError(f"[planner] replicas = {self.planner_replicas}, must be at least 1, or 'auto'")
        if self.planner_replicas != 1 and (self.requests or self.arrivals):
            raise InputError(
                "[planner] replicas: several are planned for prompt_tokens and new_tokens, not for requests or "
                "arrivals; take replicas out, or say the two lengths instead"
            )
        if not 0 <= self.planner_gap < 1:
            raise InputError(f"[planner] gap = {self.planner_gap:g}: a share of the plan's seconds, 0 or more, below 1")
        if not 0 <= self.port <= 65535:
            raise InputError(f"[server] port = {self.port}: ports go from 0 (any that is free) to 65535")
        inputs = ("model", "hostfile", "text", "calibration")
        user_of: dict[str, str] = {os.path.abspath(getattr(self, name)): name for name in inputs}
        lengths = {"requests": self.requests, "arrivals": self.arrivals}
        user_of |= {os.path.abspath(path): name for name, path in lengths.items() if path}
        user_of |= {os.path.abspath(self.model / name): f"the model's {name}" for name in MODEL_FILES}
        for name in ("profile", "links", "sensitivity", "checkpoint", "plan"):
            path = getattr(self, name)
            other = user_of.setdefault(os.path.abspath(path), name)
            if other != name:
                raise InputError(f"{other} and {name} are both {path}; {name} would be written over {other}")


class _Reader:
    """Takes keys out of the parsed TOML, checks their types, and knows which were never asked for."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = content
        self.where = where
        self.asked: dict[str, set[str]] = {}

    def take(self, table: str, key: str, kind: type, default: Any = REQUIRED) -> Any:
        self.asked.setdefault(table, set()).add(key)
        entries = self.content.get(table, {})
        if not isinstance(entries, dict):
            raise InputError(f"{self.where}: {table} is a table, written [{table}]")
        value = entries.get(key, default)
        if value is REQUIRED:
            raise InputError(f"{self.where}: [{table}] {key} is missing{_misspelt(self.content, table, key)}")
        value = read_value(value, kind, f"{self.where}: [{table}] {key}")
        if value == "":
            raise InputError(f"{self.where}: [{table}] {key} is empty")
        if isinstance(value, str) and "\0" in value:
            raise InputError(f"{self.where}: [{table}] {key} = {value!r} has a null character in it")
        return value

    def path_if_said(self, table: str, key: str) -> Path | None:
        return Path(self.take(table, key, str)) if self.says_one(table, (key,)) else None

    def says_one(self, table: str, keys: Iterable[str]) -> bool:
        """Whether one of the `keys` is there at all; all of them are known from now on."""
        self.asked.setdefault(table, set()).update(keys)
        entries = self.content.get(table, {})
        return isinstance(entries, dict) and any(key in entries for key in keys)

    def number_or_auto(self, table: str, key: str, default: int) -> int | None:
        """None for `"auto"`."""
        if self.says_one(table, (key,)) and self.content[table][key] == "auto":
            return None
        return int(self.take(table, key, int, default))

    def choices(self, table: str, key: str, default_bits: Iterable[int]) -> tuple[Choice, ...]:
        entries = self.take(table, key, list, [{"bits": bits} for bits in default_bits])
        if not entries:
            raise InputError(f"{self.where}: [{table}] {key} is empty; allow at least {{bits = 16}}")
        choices = [Choice.from_json(entry, f"{self.where}: [{table}] {key}[{k}]") for k, entry in enumerate(entries)]
        for choice in choices:
            if choices.count(choice) > 1:
                raise InputError(f"{self.where}: [{table}] {key} has {choice} bits twice")
        return tuple(sorted(choices))

    def gptq_options(self) -> GptqOptions:
        kinds = kinds_of(GptqOptions)
        said = {key: self.take("gptq", key, kind, getattr(GptqOptions, key)) for key, kind in kinds.items()}
        with located(self.where):
            return GptqOptions(**said)

    def refuse_the_rest(self) -> None:
        for table, entries in self.content.items():
            known = self.asked.get(table)
            if known is None:
                raise InputError(f"{self.where}: [{table}] is not known{nearest(table, self.asked)}")
            for key in entries:
                if key not in known:
                    raise InputError(f"{self.where}: [{table}] {key} is not known{nearest(key, known)}")


def _misspelt(content: Mapping[str, Any], table: str, key: str) -> str:
    """Where the table or the key seems to stand under another name."""
    if table not in content:
        found = difflib.get_close_matches(table, content, 1)
        return f"; is [{found[0]}] meant to be [{table}]?" if found else f"; there is no [{table}]"
    found = difflib.get_close_matches(key, content[table], 1)
    return f"; is {found[0]} meant to be {key}?" if found else ""
