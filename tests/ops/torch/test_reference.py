"""The reference ops equal their formulas, and the modules of transformers where rounding is specified."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hasten.ops.base import AttentionMask
from hasten.ops.torch.backend import TorchOps

OPS = TorchOps()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_rounds_as_in_transformers(dtype: torch.dtype) -> None:
    reference = LlamaRMSNorm(48, eps=1e-3).to(dtype)
    with torch.no_grad():
        reference.weight.copy_(_draw(48, seed=1))
    x = 3 * _draw(5, 4, 48, dtype=dtype)
    normed = OPS.rms_norm(x, reference.weight, 1e-3)
    assert normed.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(normed, reference(x), rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(normed, reference(x))


def test_layer_norm_equals_its_formula() -> None:
    x, weight, bias = _draw(6, 32), _draw(32, seed=1), _draw(32, seed=2)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight + bias
    torch.testing.assert_close(OPS.layer_norm(x, weight, bias, 1e-3).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_rotates_pairs_by_the_angle(dtype: torch.dtype) -> None:
    x = _draw(7, 3, 16, dtype=dtype)
    angles = 10 * _draw(7, 8, seed=1)
    table = torch.cat((angles, angles), -1)
    rotated = torch.complex(x[..., :8].float(), x[..., 8:].float()) * torch.polar(torch.ones(7, 1, 8), angles[:, None])
    expected = torch.cat((rotated.real, rotated.imag), -1).to(dtype)
    actual = OPS.rotate(x, table.cos(), table.sin())
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_activations_equal_their_formulas() -> None:
    gate, up = _draw(5, 12).double(), _draw(5, 12, seed=1).double()
    silu = gate / (1 + (-gate).exp()) * up
    torch.testing.assert_close(OPS.silu_mul(torch.cat((gate, up), -1)), silu)
    exact = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    torch.testing.assert_close(OPS.gelu(gate, tanh=False), exact)
    tanh = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    torch.testing.assert_close(OPS.gelu(gate, tanh=True), tanh)


def test_linear_keeps_the_dtype() -> None:
    x, weight, bias = _draw(3, 8, dtype=torch.bfloat16), _draw(5, 8, dtype=torch.bfloat16), _draw(5, dtype=torch.bfloat16)
    out = OPS.linear(x, weight, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), x.float() @ weight.float().T + bias.float(), rtol=1e-2, atol=1e-2)


def _reference_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Attention one query and one head at a time, in float64."""
    out, group = torch.zeros_like(q, dtype=torch.float64), q.shape[1] // k.shape[1]
    for t in range(q.shape[0]):
        first = 0 if mask.window is None else max(0, t - mask.window + 1)
        for head in range(q.shape[1]):
            keys, values = k[first : t + 1, head // group].double(), v[first : t + 1, head // group].double()
            out[t, head] = (keys @ q[t, head].double() * mask.scale).softmax(0) @ values
    return out


@pytest.mark.parametrize("num_tokens", [1, 2, 13])
@pytest.mark.parametrize("window", [None, 1, 4, 12, 13, 14])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_attend_dense_equals_its_formula(num_tokens: int, window: int | None, num_kv_heads: int) -> None:
    q, k = _draw(num_tokens, 4, 8), _draw(num_tokens, num_kv_heads, 8, seed=1)
    v, mask = _draw(num_tokens, num_kv_heads, 8, seed=2), AttentionMask(scale=0.7, window=window)
    torch.testing.assert_close(OPS.attend_dense(q, k, v, mask).double(), _reference_attention(q, k, v, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_attention_hides_no_query_or_key_that_is_not_finite(part: str, number: float) -> None:
    """PyTorch's own attention returns 0 for a query whose scores are all NaN."""
    q_THD, k_TKD, v_TKD = _draw(5, 4, 8), _draw(5, 2, 8, seed=1), _draw(5, 2, 8, seed=2)
    plain_THD = OPS.attend_dense(q_THD, k_TKD, v_TKD, AttentionMask(scale=0.3))
    (q_THD if part == "query" else k_TKD)[:, 1, 3] = number
    out_THD = OPS.attend_dense(q_THD, k_TKD, v_TKD, AttentionMask(scale=0.3))
    heads = [1] if part == "query" else [2, 3]  # two query heads share a key head
    assert out_THD[:, heads].isnan().any(dim=2).all()
    others = [head for head in range(4) if head not in heads]
    assert torch.equal(out_THD[:, others], plain_THD[:, others])
