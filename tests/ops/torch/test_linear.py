"""``WideningLinear`` equals float32 arithmetic on the same 16-bit weights, for full and partial tiles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hasten.ops import choose
from hasten.ops.torch import linear as module
from hasten.ops.torch.linear import WideningLinear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "in_features", "out_features"), [(1, 64, 64), (3, 40, 1000), (17, 129, 131), (5, 8, 1)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_float32_arithmetic_rounded_once(
    dtype: torch.dtype, rows: int, in_features: int, out_features: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_ROWS", 0)
    monkeypatch.setattr(module, "TILE_BYTES", 100 * 4 * in_features)  # several tiles, the last one not full
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, in_features, generator=generator).to(dtype) for n in (rows, out_features))
    bias = torch.randn(out_features, generator=generator).to(dtype) if has_bias else None
    multiply = WideningLinear()
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.inference_mode():
        product = multiply(x, weight, bias)
        again = multiply(x, weight, bias)  # reuses the scratch tile
    assert product.dtype == dtype and torch.equal(product, again)
    assert torch.allclose(product.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_float32_weights_and_gradients_use_the_plain_product() -> None:
    weight = torch.randn(8, 4, dtype=torch.bfloat16, requires_grad=True)
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    multiply = WideningLinear()
    multiply(x, weight, None).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, x.sum(0).expand(8, 4))
    with torch.inference_mode():
        float_weight = torch.randn(8, 4)
        assert torch.equal(multiply(x.float(), float_weight, None), F.linear(x.float(), float_weight))


@pytest.mark.parametrize(
    ("capabilities", "widens"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_only_processors_without_bf16_arithmetic_widen(
    capabilities: dict[str, object], widens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    ops, reason = choose.choose_ops()
    assert isinstance(ops._linear, WideningLinear) == widens == ("float32" in reason)  # type: ignore[attr-defined]


def test_a_tile_made_in_inference_mode_serves_other_modes() -> None:
    product, x_TI, weight_OI = WideningLinear(), torch.randn(8, 32).bfloat16(), torch.randn(20, 32).bfloat16()
    with torch.inference_mode():
        expected = product(x_TI, weight_OI, None)
    with torch.no_grad():
        assert torch.equal(product(x_TI, weight_OI, None), expected)
