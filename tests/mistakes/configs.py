"""Mistakes in run.toml."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mistakes.mistake import PLAN, QUANTIZE, Mistake, both, edited, replaced, written

HUGE = "9" * 400


def setting(table: str, line: str, says: str) -> Mistake:
    """A line put into a table that is there."""
    return Mistake(says, "run.toml", replaced("run.toml", f"[{table}]\n", f"[{table}]\n{line}\n"))


def added(text: str, says: str) -> Mistake:
    """A table put at the end."""
    return Mistake(says, "run.toml", replaced("run.toml", "[paths]\n", f"{text}\n[paths]\n"))


def changed(old: str, new: str, says: str) -> Mistake:
    return Mistake(says, "run.toml", replaced("run.toml", old, new))


def config_mistakes() -> Iterator[Mistake]:
    yield from misspelt()
    yield from of_the_wrong_type()
    yield from out_of_range()
    yield from contradictory()
    yield changed("[model]", "[model", "not TOML (Expected ']'")
    yield changed("batch_size = 4", "batch_size = 4\nbatch_size = 5", "not TOML (Cannot overwrite a value")
    yield changed("batch_size = 4", "batch_size = ", "not TOML (Invalid value")
    yield written_config("batch_size = " + "9" * 5000, "not TOML (Exceeds the limit")
    yield written_config("a = " + "[" * 5000, "not TOML (maximum recursion")


def written_config(text: str, says: str) -> Mistake:
    return Mistake(says, "run.toml", written("run.toml", text))


def misspelt() -> Iterator[Mistake]:
    for old, new, says in [
        ("batch_size", "batchsize", "[workload] batch_size is missing; is batchsize meant to be batch_size?"),
        ("prompt_tokens", "promt_tokens", "[workload] prompt_tokens is missing; is promt_tokens meant"),
        ("new_tokens = 8", "", "[workload] new_tokens is missing"),
        ("hostfile =", "hosts =", "[cluster] hostfile is missing; is hosts meant"),
        ("path =", "folder =", "[model] path is missing"),
        ("[model]", "[modle]", "[model] path is missing; is [modle] meant to be [model]?"),
        ("[workload]", "[load]", "[workload] batch_size is missing; is [load] meant"),
        ("calibration =", "calibraton =", "[quality] calibraton is not known; did you mean calibration?"),
        ("work =", "wrok =", "[paths] wrok is not known; did you mean work?"),
        ("max_perplexity_increase", "max_increase", "[quality] max_increase is not known"),
    ]:
        yield changed(old, new, says)
    yield added("[quailty]", "[quailty] is not known; did you mean quality?")
    yield added("[plannr]\ngap = 0.1", "[plannr] is not known; did you mean planner?")
    yield added("[gpu]", "[gpu] is not known; known: cluster")
    yield added("[planner]\ntime_limit = 3", "[planner] time_limit is not known; did you mean time_limit_s?")
    yield added("[server]\nprot = 3", "[server] prot is not known; did you mean port?")
    yield setting("quality", "choices = [{ bit = 4 }]", "[quality] choices[0]: bit is not known; did you mean bits?")
    yield setting("quality", "choices = [{ bits = 16 }, { group_size = 64 }]", "[quality] choices[1]: bits is missing")
    yield setting("cluster", "default_link = { alpha = 1, bytes_per_s = 1 }", "'alpha': 1")


def of_the_wrong_type() -> Iterator[Mistake]:
    for table, key, value, kind in [
        ("workload", "batch_size", "'4'", "a whole number"),
        ("workload", "batch_size", "4.0", "a whole number"),
        ("workload", "batch_size", "true", "a whole number"),
        ("workload", "prompt_tokens", "[16]", "a whole number"),
        ("workload", "new_tokens", "1979-05-27", "a whole number"),
        ("quality", "max_perplexity_increase", "'5 %'", "a number"),
        ("quality", "max_perplexity_increase", "false", "a number"),
        ("quality", "max_perplexity_increase", "nan", "a finite number"),
        ("quality", "max_perplexity_increase", "inf", "a finite number"),
        ("quality", "calibration", "3", "a string"),
        ("model", "path", "['tiny']", "a string"),
        ("cluster", "hostfile", "true", "a string"),
        ("paths", "work", "1.5", "a string"),
    ]:
        shown = {"true": "True", "false": "False", "1979-05-27": "datetime.date(1979, 5, 27)"}.get(value, value)
        says = f"[{table}] {key} = {shown} is not {kind}"
        yield Mistake(says, "run.toml", with_value(key, value))
    yield added("[planner]\ntime_limit_s = 'long'", "[planner] time_limit_s = 'long' is not a number")
    yield added("[planner]\ngap = true", "[planner] gap = True is not a number")
    yield added("[gptq]\nact_order = 1", "[gptq] act_order = 1 is not true or false")
    yield added("[gptq]\nsequential = 'yes'", "[gptq] sequential = 'yes' is not true or false")
    yield added("[gptq]\ndamping = true", "[gptq] damping = True is not a number")
    yield added("[gptq]\ndesc_act = true", "[gptq] desc_act is not known; known: act_order, damping, ")
    yield added("[server]\nport = '80'", "[server] port = '80' is not a whole number")
    yield added("[server]\nhost = 80", "[server] host = 80 is not a string")
    yield setting("quality", "choices = 4", "[quality] choices = 4 is not a list")
    yield setting("quality", "choices = [4]", "[quality] choices[0] = 4 is not a table")
    yield setting("quality", "choices = [{ bits = '4' }]", "choices[0]: bits = '4' is not a whole number")
    yield setting("quality", "choices = [{ bits = true }]", "choices[0]: bits = True is not a whole number")
    yield setting("cluster", "default_link = 3", "[cluster] default_link = 3 is not a table")
    yield setting("cluster", "default_link = { alpha_s = 'x', bytes_per_s = 1 }", "'alpha_s': 'x'")
    yield Mistake("model is a table, written [model]", "run.toml", written("run.toml", "model = 3\n"))


def with_value(key: str, value: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        lines = (folder / "run.toml").read_text().splitlines()
        assert any(line.startswith(f"{key} = ") for line in lines)
        text = "\n".join(f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines)
        (folder / "run.toml").write_text(text)

    return spoil


def out_of_range() -> Iterator[Mistake]:
    for key, value, says in [
        ("batch_size", "0", "batch_size = 0, must be a whole number and at least 1"),
        ("batch_size", "5000", "batch_size = 5000, at most 4096"),
        ("batch_size", HUGE, "batch_size = 999999999999999999...9999999999999999999 is not a finite number"),
        ("prompt_tokens", "-16", "prompt_tokens = -16, must be"),
        ("new_tokens", "0", "new_tokens = 0, must be"),
        ("max_perplexity_increase", "-0.1", "max_perplexity_increase = -0.1, must not be negative"),
        ("calibration", "''", "[quality] calibration is empty"),
        ("path", "''", "[model] path is empty"),
        ("hostfile", "''", "[cluster] hostfile is empty"),
    ]:
        yield Mistake(says, "run.toml", with_value(key, value))
    yield setting("quality", "calibration_windows = 0", "[quality] calibration_windows = 0, must be at least 1")
    yield setting("quality", "calibration_tokens = -5", "[quality] calibration_tokens = -5, must be at least 1")
    yield added("[gptq]\ndamping = -0.01", "[gptq] damping = -0.01: a share")
    yield added("[gptq]\ndamping = 1.01", "[gptq] damping = 1.01: a share")
    yield added("[planner]\ngap = 1.5", "[planner] gap = 1.5: a share")
    yield added("[planner]\ngap = -0.5", "[planner] gap = -0.5: a share")
    yield added("[planner]\ngap = nan", "[planner] gap = nan is not a finite number")
    yield added("[planner]\ntime_limit_s = 0", "time_limit_s = 0, must be above 0")
    yield added("[planner]\ntime_limit_s = -1", "time_limit_s = -1, must be above 0")
    yield added("[planner]\ntime_limit_s = 1e999", "[planner] time_limit_s = inf is not a finite number")
    yield added(f"[planner]\ntime_limit_s = {HUGE}", "[planner] time_limit_s = 99999")
    yield added("[planner]\nreplicas = 0", "[planner] replicas = 0, must be at least 1, or 'auto'")
    yield added("[planner]\nreplicas = 'two'", "[planner] replicas = 'two' is not a whole number")
    yield added("[planner]\nobjective = 'sum'", "objective = 'sum'; it is one of ring, llm-pq")
    yield added("[server]\nport = 65536", "[server] port = 65536: ports go from 0")
    yield added("[server]\nport = -1", "[server] port = -1: ports go from 0")
    yield added("[server]\nhost = ''", "[server] host is empty")
    yield setting("quality", "choices = []", "[quality] choices is empty; allow at least {bits = 16}")
    yield setting("quality", "choices = [{ bits = 5 }]", "choices[0]: bits = 5: choose from 3, 4, 8, 16")
    yield setting("quality", "choices = [{ bits = 4, group_size = 48 }]", "group_size = 48: must be a positive")
    yield setting("quality", "choices = [{ bits = 4, group_size = 0 }]", "4 bits with group_size 0: 16 bits has no")
    yield setting("quality", "choices = [{ bits = 16, group_size = 64 }]", "16 bits with group_size 64: 16 bits has no")
    yield setting("quality", "choices = [{ bits = 4, activations = 'int8' }]", "activations = 'int8': only 'float'")
    yield setting(
        "cluster", "default_link = { alpha_s = -1, bytes_per_s = 1 }", "alpha_s = -1 and bytes_per_s = 1 make"
    )
    yield setting("cluster", "default_link = { alpha_s = 0, bytes_per_s = 0 }", "alpha_s = 0 and bytes_per_s = 0 make")
    yield setting("cluster", "default_link = { alpha_s = nan, bytes_per_s = 1 }", "alpha_s = nan and bytes_per_s")


def contradictory() -> Iterator[Mistake]:
    yield setting("quality", "choices = [{ bits = 4 }, { bits = 4 }]", "[quality] choices has 4g64 bits twice")
    yield setting("paths", "plan = 'a'\ncheckpoint = './a'", "checkpoint and plan are both a; plan would be written")
    yield Mistake(
        "profile and sensitivity are both same.csv",
        "run.toml",
        both(
            replaced("run.toml", "[cluster]\n", "[cluster]\nprofile = 'same.csv'\n"),
            replaced("run.toml", "[quality]\n", "[quality]\nsensitivity = 'same.csv'\n"),
        ),
    )
    for key, other in (("plan", "hostfile"), ("checkpoint", "model")):
        yield Mistake(f"{other} and {key} are both", "run.toml", with_path_of(key, other))
    yield Mistake(
        "16 prompt and 800 new tokens pass the model's 256 positions; plan for fewer",
        "workload",
        with_value("new_tokens", "800"),
        PLAN,
    )
    yield Mistake(
        "250 prompt and 8 new tokens pass the model's 256 positions",
        "workload",
        with_value("prompt_tokens", "250"),
        ("measure",),
    )
    yield Mistake(
        "this machine has too little memory for it; lower batch_size",
        "tokens",
        both(
            edited("tiny/config.json", lambda config: config.update(max_position_embeddings=2**24)),
            both(with_value("prompt_tokens", str(2**24 - 100)), with_value("batch_size", "4096")),
        ),
        ("measure",),
        1,
    )
    yield Mistake(
        "[quality] indicator = 'best'; it is one of variance, ",
        "indicator",
        replaced("run.toml", "[quality]\n", "[quality]\nindicator = 'best'\n"),
        PLAN,
    )
    yield Mistake(
        "sensitivity method 'best': this version has",
        "method",
        lambda folder: None,
        ("sensitivity", "--method", "best"),
    )
    yield Mistake(
        "--devices localhost:0,a:7: the plan has stages on localhost:0, localhost:1",
        "devices",
        lambda folder: None,
        (*QUANTIZE, "--devices", "localhost:0,a:7"),
    )
    yield Mistake("no CUDA device 0 here to measure as t4", "t4", lambda folder: None, ("measure", "--device", "t4"))


def with_path_of(key: str, other: str) -> Callable[[Path], None]:
    """`key` under [paths] names the hostfile or the model folder."""
    file = {"hostfile": "hostfile", "model": "tiny"}[other]
    return lambda folder: replaced("run.toml", "[paths]\n", f"[paths]\n{key} = '{folder / file}'\n")(folder)
