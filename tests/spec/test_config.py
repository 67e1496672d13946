"""The run's TOML: what it says is taken, what it does not say has a default, what makes no sense is named."""

from pathlib import Path

import pytest

from hetero_infer.spec import Choice, InputError, Link, RunConfig, Workload
from hetero_infer.spec.config import DEMO_MODEL
from hetero_infer.spec.gptq import GptqOptions

LEAST = """
[model]
path = "my-model"
[cluster]
hostfile = "hosts"
[workload]
batch_size = 8
prompt_tokens = 64
new_tokens = 32
"""


def load(text: str, tmp_path: Path) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return RunConfig.load(path)


def test_the_least_that_must_be_said_is_enough(tmp_path: Path) -> None:
    config = load(LEAST, tmp_path)
    assert (config.model, config.hostfile, config.workload) == (Path("my-model"), Path("hosts"), Workload(8, 64, 32))
    assert config.choices == tuple(Choice(bits, 0 if bits == 16 else 64) for bits in (3, 4, 8, 16))
    assert config.embedding_choices == config.head_choices == (Choice(16),)
    assert config.plan == Path("out/plan.json")
    assert config.gptq == GptqOptions(0.01, symmetric=False, act_order=False, search_scales=True, sequential=False)
    assert config.calibration == Path("my-model/calibration.txt") and config.indicator == "variance"
    assert (config.host, config.port) == ("127.0.0.1", 8000)


def test_what_is_said_is_taken(tmp_path: Path) -> None:
    config = load(
        LEAST.replace("[workload]", "default_link = { alpha_s = 0, bytes_per_s = 5e8 }\nprofile = 'p.csv'\n[workload]")
        + """
        [quality]
        max_perplexity_increase = 1
        indicator = "measured"
        text = "t.txt"
        choices = [{ bits = 16 }, { bits = 4, group_size = 128 }, { bits = 4 }]
        head = [{ bits = 16 }, { bits = 8 }]
        [gptq]
        damping = 0
        act_order = true
        [paths]
        work = "there"
        plan = "p.json"
        [planner]
        time_limit_s = 5
        gap = 0.01
        [server]
        port = 80
        """,
        tmp_path,
    )
    assert config.default_link == Link(0, 5e8)
    assert config.profile == Path("p.csv") and config.text == Path("t.txt") and config.plan == Path("p.json")
    assert config.choices == (Choice(4, 64), Choice(4, 128), Choice(16))  # sorted
    assert config.gptq == GptqOptions(damping=0, act_order=True)
    assert config.head_choices == (Choice(8, 64), Choice(16)) and config.embedding_choices == (Choice(16),)
    assert config.checkpoint == Path("there/checkpoint") and config.sensitivity == Path("there/sensitivity.json")
    assert (config.max_perplexity_increase, config.planner_time_limit_s, config.planner_gap) == (1.0, 5.0, 0.01)
    assert (config.port, config.indicator) == (80, "measured")


def test_demo_is_the_model_that_comes_with_the_package(tmp_path: Path) -> None:
    config = load(LEAST.replace('"my-model"', '"demo"'), tmp_path)
    assert config.model == DEMO_MODEL and config.text == DEMO_MODEL / "heldout.txt"


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent.parent / "launch").glob("*.toml")), ids=str)
def test_the_configs_that_come_with_it_can_be_read(path: Path) -> None:
    RunConfig.load(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("batch_sizes = 3", "[workload] batch_sizes is not known; did you mean batch_size?"),
        ("[qualty]\ntext = 't'", "[qualty] is not known; did you mean quality?"),
        ("[paths]\nzzz = 1", "[paths] zzz is not known; known: checkpoint, plan, work"),
        ("[planner]\ntime_limit_s = 'long'", "[planner] time_limit_s = 'long' is not a number"),
        ("[server]\nport = '80'", "[server] port = '80' is not a whole number"),
        ("[server]\nport = true", "[server] port = True is not a whole number"),
        ("[planner]\nreplicas = 'two'", "[planner] replicas = 'two' is not a whole number"),
        ("[planner]\nobjective = 'sum'", "objective = 'sum'; it is one of ring, llm-pq"),
        ("[quality]\nmax_perplexity_increase = -1", "max_perplexity_increase = -1.0, must not be negative"),
        ("[quality]\nindicator = 'best'", "[quality] indicator = 'best'; it is one of variance, "),
        ("[quality]\nchoices = []", "[quality] choices is empty; allow at least {bits = 16}"),
        ("[quality]\nhead = [{ bits = 6 }]", "[quality] head[0]: bits = 6: choose from 3, 4, 8, 16"),
        ("[quality]\nchoices = [{ bits = 5 }]", "bits = 5: choose from 3, 4, 8, 16"),
        ("[quality]\nchoices = [{ bit = 4 }]", "[quality] choices[0]: bit is not known; did you mean bits?"),
        ("[quality]\nchoices = [4]", "[quality] choices[0] = 4 is not a table of keys"),
        ("server = 80", "[workload] server is not known"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(f"{LEAST}\n{text}\n", tmp_path)
    assert named in str(error.value)
    assert str(tmp_path / "run.toml") in str(error.value)


@pytest.mark.parametrize("key", ["path", "hostfile", "batch_size", "prompt_tokens", "new_tokens"])
def test_what_is_missing_is_named(key: str, tmp_path: Path) -> None:
    text = "\n".join(line for line in LEAST.splitlines() if not line.startswith(f"{key} "))
    with pytest.raises(InputError, match=rf"config .*/run.toml: \[\w+\] {key} is missing"):
        load(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (LEAST.replace("= 8", "= 0"), "workload: batch_size = 0, must be a whole number and at least 1"),
        (LEAST.replace("= 8", "= 1.5"), "[workload] batch_size = 1.5 is not a whole number"),
        ("model = 3\n", "model is a table, written [model]"),
        ("[model\n", "not TOML"),
        (LEAST.replace("[workload]", "default_link = { alpha = 1 }\n[workload]"), "default_link has alpha_s and bytes"),
        (
            LEAST.replace("[workload]", "default_link = { alpha_s = 'x', bytes_per_s = 1 }\n[workload]"),
            "default_link",
        ),
    ],
)
def test_a_wrong_value_is_named(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(text, tmp_path)
    assert named in str(error.value)


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config .*nowhere\.toml: cannot be read"):
        RunConfig.load(tmp_path / "nowhere.toml")


def test_lengths_may_be_left_to_a_file_of_requests_or_a_trace(tmp_path: Path) -> None:
    lengths = "prompt_tokens = 64\nnew_tokens = 32\n"
    assert lengths in LEAST
    for key in ("requests", "arrivals"):
        config = load(LEAST.replace(lengths, f"{key} = 'there'\n"), tmp_path)
        assert (getattr(config, key), config.batch_size, config.longest) == (Path("there"), 8, None)
        with pytest.raises(InputError, match="the lengths are in there only; say prompt_tokens and new_tokens too"):
            _ = config.workload
        assert load(LEAST.replace(lengths, f"{lengths}{key} = 'there'\n"), tmp_path).workload == Workload(8, 64, 32)
        with pytest.raises(InputError, match=f"{key} and plan are both there"):
            load(LEAST.replace(lengths, f"{key} = 'there'\n[paths]\nplan = 'there'\n"), tmp_path)
