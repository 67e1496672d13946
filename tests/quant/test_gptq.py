import pytest
import torch
from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear as AutoGptqLinear

from hetero_infer.quant.gptq import _WholeRange, quantise_linear
from hetero_infer.quant.linear import BLOCK_WEIGHTS, QuantLinear, pack_linear
from hetero_infer.quant.packing import unpack_codes
from hetero_infer.quant.round_to_nearest import pack_nearest, round_to_nearest
from hetero_infer.spec import Choice
from hetero_infer.spec.gptq import GptqOptions
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


OPTIONS = {
    "act-order": GptqOptions(act_order=True),
    "symmetric": GptqOptions(symmetric=True),
    "both": GptqOptions(act_order=True, symmetric=True),
}


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("options", [GptqOptions(), *OPTIONS.values()], ids=["plain", *OPTIONS])
@pytest.mark.parametrize(("in_features", "out_features", "group_size"), [(80, 20, 32), (50, 33, 128), (192, 65, 64)])
def test_odd_shapes_multiply_like_the_weight_that_gptq_chose(
    bits: int, options: GptqOptions, in_features: int, out_features: int, group_size: int, monkeypatch
) -> None:
    chosen = {}

    def spy(weight: torch.Tensor, *grid: object) -> dict[str, torch.Tensor]:
        chosen["weight"] = weight.clone()
        return pack_linear(weight, *grid)

    monkeypatch.setattr("hetero_infer.quant.gptq.pack_linear", spy)
    choice, x = Choice(bits, group_size), correlated_inputs(256, in_features)
    x *= torch.linspace(0.5, 2, in_features).flip(0).roll(7)  # an order of activations that is not the features' own
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(3))
    linear = QuantLinear(choice, in_features, out_features)
    linear.load_state_dict(quantise_linear(weight, 2 * x.t() @ x / len(x), choice, options))
    is_sorted = torch.equal(linear.g_idx, linear.g_idx.sort().values)
    assert is_sorted == (not options.act_order or group_size > in_features)
    plain = linear.dequantised(torch.float32).t()
    rounded_scales = 2**-11  # relative, of float16
    torch.testing.assert_close(plain, chosen["weight"], rtol=rounded_scales, atol=1e-6)
    torch.testing.assert_close(linear(x), x @ plain.t(), rtol=1e-4, atol=1e-4)
    assert (linear(x) - x @ weight.t()).norm() < {3: 0.2, 4: 0.1, 8: 0.01}[bits] * (x @ weight.t()).norm()


def test_an_order_of_groups_that_is_not_the_features_own_runs_in_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated_inputs(256, 192)
    weight = torch.randn(40, 192, generator=torch.Generator().manual_seed(3))
    linear = QuantLinear(Choice(3, 32), 192, 40)
    linear.load_state_dict(quantise_linear(weight, 2 * x.t() @ x / len(x), Choice(3, 32), OPTIONS["act-order"]))
    whole = linear.dequantised(torch.float32)
    monkeypatch.setitem(BLOCK_WEIGHTS, "cpu", 32 * 40)
    assert torch.equal(linear.dequantised(torch.float32), whole)
    assert torch.equal(linear.dequantised(torch.float32, slice(32, 40)), whole[:, 32:])


def test_a_symmetric_grid_has_its_zero_in_the_middle() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(3))
    buffers = quantise_linear(weight, torch.eye(64), Choice(4, 32), OPTIONS["symmetric"])
    assert set(unpack_codes(buffers["qzeros"].t(), 4, 32).flatten().tolist()) == {7}  # 8 - 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_symmetric_grid_reaches_weights_of_one_sign(sign: int) -> None:
    """auto-gptq's own ends at half of the largest, if none is negative."""
    weight = sign * torch.linspace(0.5, 1, 64).repeat(8, 1)
    linear = QuantLinear(Choice(8, 32), 64, 8)
    linear.load_state_dict(quantise_linear(weight, torch.eye(64), Choice(8, 32), OPTIONS["symmetric"]))
    torch.testing.assert_close(linear.dequantised(torch.float32).t(), weight, rtol=0, atol=0.01)


def test_without_any_input_everything_is_rounded_to_nearest() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    found = quantise_linear(weight, torch.zeros(64, 64), Choice(4, 32), GptqOptions(search_scales=False))
    expected = pack_nearest(weight, Choice(4, 32))
    assert all(torch.equal(found[name], buffer) for name, buffer in expected.items())


def test_a_feature_that_is_always_0_keeps_its_weights_rounded() -> None:
    x = correlated_inputs(256, 64)
    x[:, [3, 40]] = 0
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    linear = QuantLinear(Choice(8, 32), 64, 8)
    linear.load_state_dict(quantise_linear(weight, 2 * x.t() @ x / len(x), Choice(8, 32)))
    found = linear.dequantised(torch.float32).t()
    torch.testing.assert_close(found[:, [3, 40]], weight[:, [3, 40]], rtol=0, atol=0.02)
    assert weight[:, [3, 40]].abs().min() > 0.02


@pytest.mark.parametrize("options", [GptqOptions(damping=0), GptqOptions(damping=0, act_order=True)])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_singular_hessian_is_damped_more_and_said(rows: int, options: GptqOptions) -> None:
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(5))
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(4))
    said: list[str] = []
    linear = QuantLinear(Choice(4, 32), 96, 8)
    linear.load_state_dict(quantise_linear(weight, 2 * x.t() @ x / rows, Choice(4, 32), options, said.append))
    assert said == ["its Hessian is singular with damping = 0; 0.01 was taken"]
    error = (linear(x) - x @ weight.t()).norm()
    assert error < (x @ round_to_nearest(weight, Choice(4, 32)).t() - x @ weight.t()).norm()


def test_the_usual_damping_needs_no_more() -> None:
    x, said = torch.ones(1, 512), []
    quantise_linear(torch.randn(4, 512), 2 * x.t() @ x, Choice(4, 32), GptqOptions(), said.append)
    assert said == []


def test_searched_scales_leave_less_error_in_few_bits() -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(4))
    errors = []
    for searched in (True, False):
        linear = QuantLinear(Choice(3, 128), 256, 32)
        options = GptqOptions(search_scales=searched)
        linear.load_state_dict(quantise_linear(weight, torch.eye(256), Choice(3, 128), options))
        errors.append((linear.dequantised(torch.float32).t() - weight).norm())
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("group_size", [32, 96, 160])
def test_every_group_begins_with_a_block(group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scale is of weights that have heard of all errors before: quantised after those, it comes out the same."""
    seen = []
    find_params = _WholeRange.find_params

    def spy(grid: _WholeRange, x: torch.Tensor, weight: bool = False) -> None:
        seen.append(x.clone())
        find_params(grid, x, weight)

    monkeypatch.setattr(_WholeRange, "find_params", spy)
    x = correlated_inputs(512, 320)
    weight = torch.randn(8, 320, generator=torch.Generator().manual_seed(6))
    quantise_linear(weight, 2 * x.t() @ x / len(x), Choice(3, group_size))
    groups = seen[1:]  # the first is of the whole weight
    assert [group.shape[1] for group in groups] == [len(part) for part in torch.arange(320).split(group_size)]
    for group, original in list(zip(groups, weight.split(group_size, 1), strict=True))[1:]:
        assert not torch.isclose(group, original).all(0).any()  # each column has changed
