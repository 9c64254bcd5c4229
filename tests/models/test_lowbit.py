"""Low-bit linear layers: the error of each code on a normal distribution, layout, limits, a whole decoder."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trueline.models import lowbit
from trueline.models.config import DecoderConfig
from trueline.models.files import new_model
from trueline.models.lora import LoRALinear
from trueline.models.lowbit import NF4, Code, LowBitLinear, dequantize, quantize, quantize_linears

# relative squared error on N(0, 1), groups of 32, 64, 128: computed once by an independent program
EXPECTED = {
    "int4": (0.00878, 0.00985, 0.01114),
    "int4_asymmetric": (0.00653, 0.00830, 0.01011),
    "nf4": (0.00763, 0.00845, 0.00914),
}


def rounded(w_NK: Tensor, code: Code, group: int) -> Tensor:
    return dequantize(quantize(w_NK, code, group), code)


@pytest.mark.parametrize("code", EXPECTED)
@pytest.mark.parametrize("column, group", [(0, 32), (1, 64), (2, 128)])
def test_error_of_each_code(code: Code, column: int, group: int) -> None:
    w = torch.randn(512, 2048, generator=torch.Generator().manual_seed(0))
    assert float((rounded(w, code, group) - w).square().mean()) == pytest.approx(EXPECTED[code][column], rel=0.02)


def test_error_of_int8() -> None:
    """Uniform rounding: s^2 / 12, s = a / 127, and E[a^2] of 64 normal numbers measured on the same ones."""
    w = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    step = w.unflatten(1, (-1, 64)).abs().amax(-1) / 127
    assert float((rounded(w, "int8", 64) - w).square().mean()) == pytest.approx(
        float(step.square().mean() / 12), rel=0.02
    )


def test_nf4_is_the_recipe() -> None:
    """Quantiles of the normal distribution, 8 above zero and 7 below, scaled to end at 1."""
    offset = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    levels = torch.cat((above, below, torch.zeros(1, dtype=torch.float64))).sort().values
    assert torch.allclose(levels / levels.max(), torch.tensor(NF4, dtype=torch.float64), atol=2e-7)


def test_by_hand() -> None:
    """One group of each: values that the codes hit exactly come back exactly, others at the nearest level."""
    w = torch.zeros(1, 32)
    w[0, :4] = torch.tensor([-8.0, 7.0, 2.4, -0.6])
    low = quantize(w, "int4", 32)
    assert low.scales.tolist() == [[1.0]] and low.zeros is None
    assert dequantize(low, "int4")[0, :5].tolist() == [-8.0, 7.0, 2.0, -1.0, 0.0]
    assert low.codes[0, :4].tolist() == [
        0 | 8 << 4,
        15 | 8 << 4,
        10 | 8 << 4,
        7 | 8 << 4,
    ]  # input 16 + i in the high half
    w[0, :3] = torch.tensor([-5.0, 10.0, 4.4])
    low = quantize(w, "int4_asymmetric", 32)
    assert low.scales.tolist() == [[1.0]] and low.zeros is not None and low.zeros.tolist() == [[5.0]]
    assert dequantize(low, "int4_asymmetric")[0, :5].tolist() == [-5.0, 10.0, 4.0, -1.0, 0.0]
    w[0, :3] = torch.tensor([-2.0, 2 * 0.44, 2 * 0.03])
    assert dequantize(quantize(w, "nf4", 32), "nf4")[0, :3].tolist() == pytest.approx([-2.0, 2 * NF4[12], 0.0])
    w[0, :3] = torch.tensor([127.0, -126.6, 0.5])
    assert rounded(w, "int8", 32)[0, :3].tolist() == [127.0, -127.0, 0.0]  # a half goes to the even number


@pytest.mark.parametrize("code", ["int8", "int4", "int4_asymmetric", "nf4"])
def test_zeros_and_one_sided_groups(code: Code) -> None:
    w = torch.zeros(3, 96)
    w[1, 32:64] = torch.linspace(0.5, 2, 32)
    w[2, 64:] = -torch.linspace(0.5, 2, 32)
    got = rounded(w, code, 32)
    assert torch.equal(got == 0, w == 0) and torch.isfinite(got).all()
    assert (
        float((got - w).abs().max()) <= 0.305
    )  # NF4's widest gap is 0.304 of the largest, less than half of it is lost


@pytest.mark.parametrize("code", ["int8", "int4", "int4_asymmetric", "nf4"])
def test_layer(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward by panels is the product with the matrix that the codes stand for, and so is the gradient of x."""
    monkeypatch.setattr(lowbit, "PANEL_FLOATS", 64 * 5)
    generator = torch.Generator().manual_seed(0)
    dense, x = nn.Linear(64, 23), torch.randn(2, 7, 64, generator=generator, requires_grad=True)
    layer = LowBitLinear(dense, code, 32)
    assert layer.panels()[-1] == (20, 23)
    matrix = layer.part(0, 23, torch.float32)
    assert 0.9 * matrix.norm() < dense.weight.norm() < 1.1 * matrix.norm()
    out = layer(x)
    assert torch.allclose(out, x @ matrix.T + dense.bias, atol=1e-6)
    out.square().sum().backward()
    assert torch.allclose(x.grad, 2 * out.detach() @ matrix, atol=1e-5)
    assert not list(layer.parameters())
    bits = 8 * (layer.num_bytes - 4 * 23) / (23 * 64)
    assert bits == {"int8": 8 + 1, "int4": 4 + 1, "int4_asymmetric": 4 + 2, "nf4": 4 + 1}[code]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"rows of 96 weights do not divide into groups of 64 .*: choose 32"):
        quantize(torch.ones(2, 96), "int4", 64)
    with pytest.raises(ValueError, match=r"rows of 48 .* cannot be quantised"):
        quantize(torch.ones(2, 48), "nf4", 32)
    with pytest.raises(ValueError, match="choose one of int8, int4"):
        quantize(torch.ones(2, 64), "int3", 32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a number"):
        quantize(torch.full((1, 32), math.nan), "int8", 32)


def test_a_decoder() -> None:
    """All linears of the layers, in place, and the head in 8 bits; fused blocks step aside; logits stay near at 8 bits, less so at 4."""
    config = DecoderConfig(
        model_type="qwen3", vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, qk_norm=True, tie_word_embeddings=False, max_position_embeddings=32,
    )  # fmt: skip
    ids = torch.arange(12)

    def model() -> nn.Module:
        return new_model(config, seed=1).requires_grad_(False)

    exact, apart = model().logits(ids), {}  # type: ignore[operator]
    for code in ("int8", "int4"):
        low = quantize_linears(model(), code, 32)
        assert sum(isinstance(module, LowBitLinear) for module in low.modules()) == 2 * 7 + 1
        assert not any(type(module) is nn.Linear for module in low.modules()) and low.lm_head.code == "int8"  # type: ignore[union-attr]
        apart[code] = float((low.logits(ids) - exact).norm() / exact.norm())  # type: ignore[operator]
    assert 0 < apart["int8"] < 0.02 < apart["int4"] < 0.3
    with pytest.raises(ValueError, match=r"^layers\.0\.mlp\.down_proj: rows of 96 weights"):
        quantize_linears(model(), "int8", 64)
    adapted = model()
    adapted.layers[0].mlp.up_proj = LoRALinear(adapted.layers[0].mlp.up_proj)  # type: ignore[union-attr,index]
    with pytest.raises(ValueError, match="merge the adapters"):
        quantize_linears(adapted, "int8", 32)
