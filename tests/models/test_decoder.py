"""``embed``, ``run`` and ``head`` compose, hooks work, and gradients reach every parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.dense import dense_logits
from tests.tiny_models import tiny_reference
from torch import Tensor
from torch.nn.functional import cross_entropy

from hasten.layers.attention import DenseContext
from hasten.models.decoder import Decoder
from hasten.models.family import find_family
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps

IDS = torch.tensor([3, 77, 12, 50, 50, 8, 99, 1, 1, 64, 23, 5])
NAMES = ["llama-gqa", "qwen2-mixed-window", "gpt2"]


def _decoder(tiny: Callable[[str], Path], name: str) -> Decoder:
    return load_decoder(tiny(name), ops=TorchOps()).decoder


def _context(decoder: Decoder, *lengths: int) -> DenseContext:
    return DenseContext(decoder.ops, decoder.rotary, lengths)


@pytest.mark.parametrize("name", NAMES)
def test_ranges_of_layers_compose(name: str, tiny: Callable[[str], Path]) -> None:
    decoder = _decoder(tiny, name)
    context = _context(decoder, len(IDS))
    full = decoder.run(decoder.embed(IDS), context.positions_T, context)
    for middle in range(decoder.spec.num_layers + 1):
        first = decoder.run(decoder.embed(IDS), context.positions_T, context, 0, middle)
        assert torch.equal(decoder.run(first, context.positions_T, context, middle), full) or middle == 0
    hidden = decoder.run(decoder.embed(IDS), context.positions_T, context, 0, 1)
    for index in range(1, decoder.spec.num_layers):
        hidden = decoder.run(hidden, context.positions_T, context, index, index + 1)
    assert torch.equal(hidden, full)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_see_the_hidden_state_after_their_layer(name: str, tiny: Callable[[str], Path]) -> None:
    decoder = _decoder(tiny, name)
    context = _context(decoder, len(IDS))
    seen: dict[int, Tensor] = {}
    hooks = {index: lambda hidden, index=index: seen.update({index: hidden}) for index in (0, 2)}
    full = decoder.run(decoder.embed(IDS), context.positions_T, context, hooks=hooks)
    assert set(seen) == {0, 2}
    assert torch.equal(seen[0], decoder.run(decoder.embed(IDS), context.positions_T, context, 0, 1))
    assert torch.equal(decoder.run(seen[2], context.positions_T, context, 3), full)


@pytest.mark.parametrize("name", NAMES)
def test_sequences_in_one_pass_do_not_attend_to_each_other(name: str, tiny: Callable[[str], Path]) -> None:
    decoder = _decoder(tiny, name)
    prompts = [IDS[:7].tolist(), IDS[7:8].tolist(), IDS[2:].tolist()]
    alone = torch.cat([dense_logits(decoder, [prompt]) for prompt in prompts])
    torch.testing.assert_close(dense_logits(decoder, prompts), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_causal(name: str, tiny: Callable[[str], Path]) -> None:
    decoder = _decoder(tiny, name)
    other = IDS.clone()
    other[8:] = (other[8:] + 1) % decoder.spec.vocab_size
    before, after = dense_logits(decoder, [IDS.tolist()]), dense_logits(decoder, [other.tolist()])
    torch.testing.assert_close(before[:8], after[:8], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[8:], after[8:])


@pytest.mark.parametrize("name", ["llama-mqa-bias", "qwen2-tied", "qwen2-mixed-window", "qwen3-gqa", "gpt2"])
def test_gradients_equal_transformers(name: str, tiny: Callable[[str], Path]) -> None:
    """The gradients of the same loss agree for every tensor of the checkpoint."""
    model = load_decoder(tiny(name), ops=TorchOps())
    decoder = model.decoder.requires_grad_(True)
    cross_entropy(dense_logits(decoder, [IDS.tolist()])[:-1], IDS[1:]).backward()
    reference = tiny_reference(name).requires_grad_(True)
    cross_entropy(reference(IDS[None]).logits[0, :-1], IDS[1:]).backward()
    for source in find_family(model.config).weights(model.spec):
        gradient, expected = decoder.get_parameter(source.target).grad, reference.get_parameter(source.name).grad
        assert gradient is not None
        assert expected is not None
        part = gradient[source.start : source.stop]
        assert expected.abs().max() > 0, source.name
        torch.testing.assert_close(
            part.T if source.transposed else part, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )
