import pytest

from hetero_infer.spec import UNQUANTISED, Choice, InputError, ModelSpec
from hetero_infer.spec.families.gptq import quantization_config
from tests.llama import llama_spec
from tests.tiny_model import BLOOM, OPT

SPEC = llama_spec()  # 4 layers, inputs of 64 and 128
FOUR = {"quant_method": "gptq", "bits": 4, "group_size": 32}


def stored(**said: object) -> tuple[Choice, ...]:
    return llama_spec(quantization_config=FOUR | said).stored_choices


def test_a_model_without_a_quantization_config_is_unquantised() -> None:
    assert SPEC.stored_choices == llama_spec(quantization_config=None).stored_choices == ()


def test_every_decoder_layer_has_the_choice_of_the_checkpoint() -> None:
    assert stored() == (Choice(4, 32),) * 4
    assert stored(bits=8, desc_act=True, sym=False, checkpoint_format="gptq") == (Choice(8, 32),) * 4


def test_one_group_over_all_inputs_is_a_group_as_wide_as_the_widest_linear() -> None:
    assert stored(group_size=-1) == (Choice(4, 128),) * 4


def test_the_first_rule_that_matches_counts() -> None:
    rules = {r"-:.*\.layers\.1\.": {}, r"+:.*\.layers\.[12]\..*": {"bits": 8}, r".*\.3\..*": {"group_size": 64}}
    assert stored(dynamic=rules) == (Choice(4, 32), UNQUANTISED, Choice(8, 32), Choice(4, 64))


@pytest.mark.parametrize("family", [{"model_type": "llama"}, OPT, BLOOM], ids=["llama", "opt", "bloom"])
@pytest.mark.parametrize(
    "choices",
    [
        (Choice(4, 64),) * 3,
        (Choice(3, 32), UNQUANTISED, Choice(8, 64)),
        (UNQUANTISED, Choice(4, 192), Choice(4, 192)),  # one group each
    ],
)
def test_what_is_written_of_a_model_reads_back(family: dict[str, object], choices: tuple[Choice, ...]) -> None:
    shape = {"intermediate_size": 192} if family["model_type"] == "llama" else {"ffn_dim": 192}
    config = BASE | family | shape
    written = quantization_config(ModelSpec.from_config(config, "x"), choices, reads_g_idx=False, symmetric=True)
    assert ("dynamic" in written) == (len(set(choices)) > 1)
    assert (written["group_size"] == -1) == (192 in (choice.group_size for choice in choices))
    assert ModelSpec.from_config(config | {"quantization_config": written}, "x").stored_choices == choices


BASE = {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quant_method": "awq"}, "quant_method = 'awq': this version reads 'gptq' only"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method = 'bitsandbytes'"),
        ({"quant_method": None}, "quant_method = None"),
        ({"bits": 2}, "bits = 2: choose from"),
        ({"bits": "4"}, "bits = '4' is not a whole number"),
        ({"group_size": None}, "group_size = None is not a whole number"),
        ({"group_size": 48}, "group_size = 48: must be a positive multiple of 32"),
        ({"checkpoint_format": "gptq_v2"}, "checkpoint_format = 'gptq_v2': this version reads 'gptq'"),
        ({"is_marlin_format": True}, "is_marlin_format = True"),
        ({"pack_dtype": "int16"}, "pack_dtype = 'int16'"),
        ({"lm_head": True}, "lm_head = True: a quantised head is not read"),
        ({"dynamic": {"+:.*q_proj": {"bits": 8}}}, "decoder layer 0 is at 4g32, 8g32, and here a layer has one choice"),
        ({"dynamic": {"+:(": {"bits": 8}}}, "'+:(' is no regular expression"),
        ({"dynamic": {"+:.*": 8}}, "dynamic, +:.* = 8 is not a table"),
        ({"modules_in_block_to_quantize": [["self_attn.q_proj"]]}, "all Linears of a layer must be, or none"),
    ],
)
def test_what_cannot_be_read_is_refused_by_field(said: dict[str, object], says: str) -> None:
    with pytest.raises(InputError) as refused:
        stored(**said)
    assert says in str(refused.value)
