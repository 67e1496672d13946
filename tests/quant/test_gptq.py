import pytest
import torch
from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear as AutoGptqLinear

from hetero_infer.quant.gptq import quantise_linear
from hetero_infer.quant.linear import QuantLinear, pack_linear
from hetero_infer.quant.round_to_nearest import round_to_nearest
from hetero_infer.spec import Choice
from tests.quant.test_quant_linear import random_grid


def correlated_inputs(rows: int, features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(features // 4, features, generator=generator)
    own = 0.1 * torch.randn(rows, features, generator=generator)
    return torch.randn(rows, features // 4, generator=generator) @ mixing / 4 + own


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_buffers_equal_auto_gptqs_own_packing(bits: int) -> None:
    choice = Choice(bits, 32)
    grid = random_grid(128, 64, choice, smallest_zero=1)  # auto-gptq's 0 - 1 overflows into its neighbours
    theirs = AutoGptqLinear(bits, 32, 128, 64, bias=False, weight_dtype=torch.float16)
    linear = torch.nn.Linear(128, 64, bias=False)
    linear.weight.data = grid["weight"].clone()
    theirs.pack(linear, grid["scales"].clone(), grid["zeros"].clone(), grid["g_idx"].int())
    ours = pack_linear(**grid, bits=bits)
    for name, buffer in ours.items():
        assert torch.equal(buffer, getattr(theirs, name).to(buffer.dtype)), name


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gptq_beats_round_to_nearest_on_correlated_inputs(bits: int) -> None:
    choice = Choice(bits, 64)
    x = correlated_inputs(1024, 160)
    weight = torch.randn(48, 160, generator=torch.Generator().manual_seed(2)) * 0.05
    linear = QuantLinear(choice, 160, 48)
    linear.load_state_dict(quantise_linear(weight, 2 * x.t() @ x / len(x), choice))
    exact = x @ weight.t()
    gptq_error = (linear(x) - exact).norm()
    nearest_error = (x @ round_to_nearest(weight, choice).t() - exact).norm()
    assert gptq_error < 0.7 * nearest_error


def test_the_packed_weight_is_the_one_gptq_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {}

    def spy(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, g_idx: torch.Tensor, bits: int):
        chosen["weight"] = weight.clone()
        return pack_linear(weight, scales, zeros, g_idx, bits)

    monkeypatch.setattr("hetero_infer.quant.gptq.pack_linear", spy)
    choice = Choice(4, 32)
    x = correlated_inputs(256, 80)
    linear = QuantLinear(choice, 80, 20)
    weight = torch.randn(20, 80, generator=torch.Generator().manual_seed(3))
    linear.load_state_dict(quantise_linear(weight, 2 * x.t() @ x / len(x), choice))
    rounded_scales = 2**-11  # relative, of float16
    torch.testing.assert_close(linear.dequantised(torch.float32).t(), chosen["weight"], rtol=rounded_scales, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-7])
def test_weights_too_small_for_a_float16_scale_become_nearly_zero(size: float) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    weight[:, 32:] *= size
    linear = QuantLinear(Choice(8, 32), 64, 8)
    linear.load_state_dict(quantise_linear(weight, torch.eye(64), Choice(8, 32)))
    found = linear.dequantised(torch.float32).t()
    assert found[:, 32:].abs().max() < 1e-4
    torch.testing.assert_close(found[:, :32], weight[:, :32], rtol=0, atol=0.02)


def test_quantising_changes_no_argument() -> None:
    weight, hessian = torch.randn(8, 32), torch.eye(32)
    before = weight.clone(), hessian.clone()
    quantise_linear(weight, hessian, Choice(4, 32))
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])
