"""The other engine: auto-gptq, which loads a folder, and makes one of a model by its own GPTQ and packing."""

import json
from pathlib import Path
from unittest import mock

import torch
from auto_gptq import AutoGPTQForCausalLM
from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear as AutoGptqLinear
from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear as AutoGptqLinearInOrder
from auto_gptq.quantization import gptq
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

LINEARS = AutoGptqLinear, AutoGptqLinearInOrder


def read(path: Path) -> PreTrainedModel:
    """By auto-gptq's own loader, in float32 on a CPU."""
    kernels = {"use_triton": False, "disable_exllama": True, "inject_fused_attention": False}
    loaded = AutoGPTQForCausalLM.from_quantized(path, device="cpu", torch_dtype=torch.float32, **kernels)
    return loaded.model.float().eval()


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
