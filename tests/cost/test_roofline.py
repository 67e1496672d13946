"""Seconds from the spec sheet: by hand at both roofs, and never less for more work."""

from dataclasses import replace

import pytest

from hetero_infer.cost import roofline
from hetero_infer.cost.latency import (
    MEASURED,
    SPEC_SHEET,
    LayerKind,
    MeasuredElseSpecSheet,
    ProfiledLatency,
    Source,
)
from hetero_infer.cost.memory import decoder_layer_bytes, linear_bytes
from hetero_infer.cost.roofline import RooflineLatency
from hetero_infer.spec import UNQUANTISED, Choice, Device, InputError, ModelSpec, Phase, ProfileRow, ProfileTable
from hetero_infer.spec.gpu_type import GPU_TYPES
from hetero_infer.spec.model import Linear

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
MODEL = ModelSpec.from_config(LLAMA_7B, "here")
WEIGHTS = 4 * 4096 * 4096 + 3 * 4096 * 11008
T4 = Device("a", 0, "t4", 2**34)
FOUR = Choice(4, 64)
LATENCY = RooflineLatency(MODEL)


def prefill(batch: int, tokens: int, device: Device = T4, choice: Choice = UNQUANTISED) -> float:
    return LATENCY.layer_seconds(device, "decoder", choice, Phase.PREFILL, batch, tokens, 0)


def decode(batch: int, past: int, device: Device = T4, choice: Choice = UNQUANTISED) -> float:
    return LATENCY.layer_seconds(device, "decoder", choice, Phase.DECODE, batch, 1, past)


def test_a_long_prompt_takes_its_arithmetic() -> None:
    """T4: 65 TFLOP/s, of which half; attention over half of the 2048 tokens at the mean."""
    flops = 2 * 2048 * WEIGHTS + 4 * 2048 * 1024 * 4096
    assert prefill(1, 2048) == pytest.approx(flops / 32.5e12 + 50 * roofline.KERNEL_S, rel=1e-6)


def test_one_token_takes_the_reading_of_the_weights() -> None:
    """T4: 300 GB/s, of which four fifths. A cache of 99 + 1 tokens, and the activations into and out of each Linear."""
    linears = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    num_bytes = 2 * (WEIGHTS + 2 * 4096) + 2 * linears + 2 * 100 * 2 * 4096
    assert decode(1, 99) == pytest.approx(num_bytes / 240e9 + 50 * roofline.KERNEL_S, rel=1e-6)


def test_a_quantised_layer_reads_its_codes_and_unpacks_them() -> None:
    """What `QuantLinear` does in both phases: fewer bits save memory, and cost time."""
    saved = decoder_layer_bytes(MODEL, UNQUANTISED, 2) - decoder_layer_bytes(MODEL, FOUR, 2)
    more_s = (WEIGHTS * roofline.UNPACK_BYTES[Phase.DECODE] - saved) / 240e9 + 70 * roofline.KERNEL_S
    assert decode(1, 99, choice=FOUR) == pytest.approx(decode(1, 99) + more_s, rel=1e-6)
    assert decode(1, 99, choice=Choice(3, 64)) < decode(1, 99, choice=FOUR) < decode(1, 99, choice=Choice(8, 64))
    assert prefill(8, 2048) < prefill(8, 2048, choice=FOUR) < 1.2 * prefill(8, 2048), "about as long as in fp16"


@pytest.mark.parametrize("choice", [UNQUANTISED, FOUR])
def test_more_work_never_takes_less_time(choice: Choice) -> None:
    sizes = [1, 2, 3, 8, 17, 64, 200]
    for device in (replace(T4, type=name) for name in GPU_TYPES):
        for seconds in (
            [prefill(batch, 64, device, choice) for batch in sizes],
            [prefill(2, tokens, device, choice) for tokens in sizes],
            [decode(batch, 64, device, choice) for batch in sizes],
            [decode(4, past, device, choice) for past in sizes],
        ):
            assert seconds == sorted(seconds) and seconds[0] > 0


def test_a_better_card_is_not_slower() -> None:
    for worse, better in [("p100-12", "p100"), ("t4", "v100-16"), ("v100-32", "a100-40"), ("a100-80", "h100")]:
        for seconds in (prefill, decode):
            assert seconds(8, 512, replace(T4, type=better)) <= seconds(8, 512, replace(T4, type=worse))


def test_embedding_and_head_by_hand() -> None:
    table, launch_s = 32000 * 4096, 4 * roofline.KERNEL_S
    head = LATENCY.layer_seconds(T4, "head", UNQUANTISED, Phase.DECODE, 8, 1, 99)
    assert head == pytest.approx((2 * table + 8 * 32000 * 4) / 240e9 + launch_s, rel=1e-6)
    assert head == LATENCY.layer_seconds(T4, "head", UNQUANTISED, Phase.PREFILL, 8, 512, 0), "the newest rows only"
    embedding = LATENCY.layer_seconds(T4, "embedding", UNQUANTISED, Phase.PREFILL, 2, 512, 0)
    assert embedding == pytest.approx(2 * 1024 * 4096 * 2 / 240e9 + launch_s, rel=1e-6)


def test_quantised_ends_read_codes_and_unpack_what_they_use() -> None:
    """All of the head, and of the embedding the rows that are looked up."""

    def more_s(kind: LayerKind, choice: Choice) -> float:
        return LATENCY.layer_seconds(T4, kind, choice, Phase.DECODE, 8, 1, 99) - LATENCY.layer_seconds(
            T4, kind, UNQUANTISED, Phase.DECODE, 8, 1, 99
        )

    table, blocks = Linear(32000, 4096, False), 3  # of the 11008 rows that the MLP's largest Linear has
    saved = linear_bytes(table, UNQUANTISED, 2) - linear_bytes(table, FOUR, 2)
    unpacked = 32000 * 4096 * roofline.UNPACK_BYTES[Phase.DECODE]
    assert more_s("head", FOUR) == pytest.approx((unpacked - saved) / 240e9 + 10 * blocks * roofline.KERNEL_S)
    looked_up = 8 * 4096 * roofline.UNPACK_BYTES[Phase.DECODE]
    assert more_s("embedding", FOUR) == pytest.approx(looked_up / 240e9 + 10 * roofline.KERNEL_S)


def test_slowdown_and_threads_count() -> None:
    assert decode(1, 99, replace(T4, slowdown=2.5)) == 2.5 * decode(1, 99)
    cpu = Device("a", 0, "cpu", 2**34)
    launch_s = 50 * roofline.KERNEL_S
    assert decode(1, 99, replace(cpu, threads=4)) - launch_s == pytest.approx((decode(1, 99, cpu) - launch_s) / 4)


def test_a_type_that_nobody_knows_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"device a:0: h300 was not measured, .* launch/measure\.py"):
        LATENCY.allowed_choices(replace(T4, type="h300"), (FOUR,))
    with pytest.raises(InputError, match="the spec sheet has no such type"):
        decode(1, 99, replace(T4, type="h300"))


def test_the_spec_sheet_is_for_what_was_not_measured() -> None:
    rows = [
        ProfileRow("t4", "tiny", 64, 128, 4, 64, "float", phase, 1, *tokens, 7.0)
        for phase, tokens in ((Phase.PREFILL, (8, 0)), (Phase.DECODE, (1, 8)))
    ]
    latency = MeasuredElseSpecSheet(ProfiledLatency(ProfileTable(tuple(rows)), "tiny"), LATENCY)
    v100 = replace(T4, type="v100-32")
    assert latency.layer_seconds(T4, "decoder", FOUR, Phase.DECODE, 1, 1, 8) == 7.0
    assert latency.layer_seconds(v100, "decoder", FOUR, Phase.DECODE, 1, 1, 8) == decode(1, 8, v100, FOUR)
    assert latency.allowed_choices(T4, (FOUR, UNQUANTISED)) == (FOUR,)
    assert latency.allowed_choices(v100, (FOUR, UNQUANTISED)) == (FOUR, UNQUANTISED)
    assert latency.source(T4).word == MEASURED and latency.source(v100) == Source(SPEC_SHEET)
