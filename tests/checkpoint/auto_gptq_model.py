"""The other engine: a model of `transformers` whose Linears are auto-gptq's, read from a folder or made by its pack."""

import json
from pathlib import Path
from unittest import mock

import torch
from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear as AutoGptqLinear
from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear as AutoGptqLinearInOrder
from auto_gptq.quantization import gptq
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def read(path: Path) -> PreTrainedModel:
    """As `quantize_config.json` says; auto-gptq's own way takes CUDA. Every tensor of the folder finds its place."""
    said = json.loads((path / "quantize_config.json").read_text())
    config = AutoConfig.from_pretrained(path)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32)
    for name, linear in _decoder_linears(model).items():
        _put(model, name, _empty(said, linear))
    tensors = {}
    for file in path.glob("*.safetensors"):
        tensors |= load_file(file)
    left_out = model.load_state_dict(tensors, strict=False)
    assert not left_out.unexpected_keys
    assert set(left_out.missing_keys) <= {"lm_head.weight"} if config.tie_word_embeddings else not left_out.missing_keys
    return model.float().eval()


def make(path: Path, to: Path, *, bits: int, group_size: int, act_order: bool, symmetric: bool) -> PreTrainedModel:
    """A checkpoint as auto-gptq makes it of the model at `path`: its GPTQ, its packing, its names. Gives its maker."""
    said = {"bits": bits, "group_size": group_size, "desc_act": act_order, "sym": symmetric, "quant_method": "gptq"}
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    for name, linear in _decoder_linears(model).items():
        maker = gptq.GPTQ(linear)
        maker.quantizer.configure(bits, perchannel=True, sym=symmetric)
        mixing = torch.randn(linear.in_features, linear.in_features, generator=torch.Generator().manual_seed(1))
        maker.add_batch(torch.randn(256, linear.in_features) @ mixing, torch.zeros(256, linear.out_features))
        with mock.patch.object(torch.cuda, "synchronize"):
            scales, zeros, g_idx = maker.fasterquant(group_size=group_size, actorder=act_order)
        packed = _empty(said, linear)
        packed.pack(linear, scales, zeros, g_idx)
        _put(model, name, packed)
    to.mkdir()
    config = json.loads((path / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    (to / "quantize_config.json").write_text(json.dumps(said))
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in _tensors(model)}
    save_file(tensors, to / f"gptq_model-{bits}bit.safetensors", {"format": "pt"})
    model.load_state_dict(tensors)
    return model.float().eval()


def _tensors(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor.contiguous().clone()) for name, tensor in model.state_dict().items()]


def _decoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and name != "lm_head"}


def _empty(said: dict, linear: nn.Linear) -> nn.Module:
    """auto-gptq takes one class for groups in order, another for act-order."""
    cls = AutoGptqLinear if said["desc_act"] else AutoGptqLinearInOrder
    shape = linear.in_features, linear.out_features, linear.bias is not None
    return cls(said["bits"], said["group_size"], *shape, weight_dtype=torch.float32)


def _put(model: PreTrainedModel, name: str, linear: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, linear)
