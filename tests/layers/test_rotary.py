"""Frequencies and angles equal those of transformers bit for bit, for old and new configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.gguf_files import llama3_factors
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hasten.core.errors import UnsupportedModel
from hasten.layers.rotary import RotaryTables
from hasten.models.config import ConfigView
from hasten.models.rope_config import longest_context, read_rotary

HEAD_DIM, MAX_POSITIONS = 64, 4096
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
YARN = {"factor": 16.0, "original_max_position_embeddings": 256}

TABLES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "default, large base": {"rope_type": "default", "rope_theta": 500_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3},
    "llama3, narrow blend": {"rope_type": "llama3", "rope_theta": 10_000.0, **LLAMA3, "low_freq_factor": 2.0, "factor": 32.0},
    "llama3, without original context": {
        "rope_type": "llama3",
        "rope_theta": 1e6,
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10_000.0, **YARN},
    "yarn, own attention factor": {"rope_type": "yarn", "rope_theta": 10_000.0, **YARN, "attention_factor": 0.7},
    "yarn, mscale": {"rope_type": "yarn", "rope_theta": 10_000.0, **YARN, "mscale": 0.707, "mscale_all_dim": 0.9},
    "yarn, betas": {"rope_type": "yarn", "rope_theta": 1e6, **YARN, "beta_fast": 24, "beta_slow": 2},
    "yarn, not truncated": {"rope_type": "yarn", "rope_theta": 10_000.0, **YARN, "truncate": False},
    "yarn, empty ramp": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 6},
}


def _config(table: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=HEAD_DIM * 2,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters=dict(table),
    )


def _rotary(values: dict[str, Any]) -> Any:
    return read_rotary(ConfigView({"model_type": "llama", **values}), HEAD_DIM, MAX_POSITIONS)


@pytest.mark.parametrize("name", TABLES)
def test_frequencies_equal_transformers(name: str) -> None:
    table = TABLES[name]
    spec = _rotary({"rope_parameters": table})
    config = _config(table)
    if table["rope_type"] == "default":
        frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[table["rope_type"]](config)
    assert torch.equal(spec.inverse_frequencies(), frequencies)
    assert spec.attention_factor == pytest.approx(factor, abs=0)


@pytest.mark.parametrize("name", TABLES)
def test_angles_equal_transformers(name: str) -> None:
    spec = _rotary({"rope_parameters": TABLES[name]})
    positions = torch.cat((torch.arange(40), torch.tensor([MAX_POSITIONS - 1, 17, 1000])))
    cos, sin = RotaryTables([spec]).at(positions)[spec]
    their_cos, their_sin = LlamaRotaryEmbedding(_config(TABLES[name]))(torch.zeros(1), positions[None])
    assert torch.equal(cos, their_cos[0])
    assert torch.equal(sin, their_sin[0])


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("kind_key", ["rope_type", "type"])
def test_older_configurations_give_the_same_spec(name: str, kind_key: str) -> None:
    table = dict(TABLES[name])
    theta, kind = table.pop("rope_theta"), table.pop("rope_type")
    scaling = None if kind == "default" else {kind_key: kind, **table}
    assert _rotary({"rope_theta": theta, "rope_scaling": scaling}) == _rotary({"rope_parameters": TABLES[name]})


@pytest.mark.parametrize("factor", [8.0, 32.0, 3.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequency_factors_of_gguf_equal_llama3_scaling(factor: float, head_dim: int) -> None:
    """Bit for bit where waves stay or are stretched by a power of two, else within two units in the last place."""
    table = {**TABLES["llama3"], "factor": factor}
    config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=4096, rope_parameters=dict(table))
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    factors = [float(value) for value in llama3_factors(table, head_dim)]
    view = ConfigView({"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "frequency_factors", "factors": factors}})
    frequencies = read_rotary(view, head_dim, MAX_POSITIONS).inverse_frequencies()
    view.check()
    blended = [1.0 < value < factor for value in factors]
    assert {1.0, factor} <= set(factors)
    assert any(blended)
    assert torch.allclose(frequencies, expected, rtol=2.4e-7, atol=0.0)
    exact = torch.tensor([not value for value in blended]) if factor != 3.0 else torch.tensor([value == 1.0 for value in factors])
    assert torch.equal(frequencies[exact], expected[exact])


def test_theta_is_10000_without_rotary_settings() -> None:
    assert _rotary({}) == _rotary({"rope_parameters": TABLES["default"]})


def test_the_original_context_beside_the_table_wins() -> None:
    """Some configurations name it there; transformers does the same."""
    inner = _rotary({"rope_parameters": {**TABLES["llama3"], "original_max_position_embeddings": 128}})
    outer = _rotary({"rope_parameters": TABLES["llama3"], "original_max_position_embeddings": 128})
    assert inner == outer != _rotary({"rope_parameters": TABLES["llama3"]})


def test_yarn_extends_the_context() -> None:
    values = {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}
    assert longest_context(ConfigView(values), _rotary(values), 4096) == 16_384
    assert longest_context(ConfigView({}), _rotary({}), 4096) == 4096


@pytest.mark.parametrize(
    "values, expected_parts",
    [
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, ["longrope", "default, linear, dynamic, yarn, llama3"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["factor=None"]),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, ["low_freq_factor=None", "high_freq_factor=None"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": -1.0}}, ["factor=-1.0"]),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, ["high_freq_factor=1.0", "above"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5"]),
        ({"rope_scaling": {"rope_type": "frequency_factors"}}, ["factors=None", "32 numbers above 0"]),
        ({"rope_scaling": {"rope_type": "frequency_factors", "factors": [1.0] * 31}}, ["32 numbers above 0"]),
        ({"rope_scaling": {"rope_type": "frequency_factors", "factors": [1.0] * 31 + [0.0]}}, ["32 numbers above 0"]),
        ({"rope_scaling": {"rope_type": "frequency_factors", "factors": [1.0] * 31 + ["1"]}}, ["32 numbers above 0"]),
        ({"rope_parameters": {"rope_theta": "large"}}, ["rope_theta='large'"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["rope_parameters", "one table for all layers"]),
    ],
)
def test_unsupported_values_are_refused_by_name(values: dict[str, Any], expected_parts: list[str]) -> None:
    view = ConfigView({"model_type": "llama", **values})

    def read() -> None:
        read_rotary(view, HEAD_DIM, MAX_POSITIONS)
        view.check()

    with pytest.raises(UnsupportedModel) as error:
        read()
    assert all(part in str(error.value) for part in expected_parts)
