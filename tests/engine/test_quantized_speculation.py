"""Speculation with a quantised or GGUF target, or draft model: greedy outputs are those without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten import LLM, SamplingParams
from hasten.checkpoints.formats.draft_ids import write_draft_ids
from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.output import RequestOutput
from hasten.entrypoints.wiring.load_drafters import drafter_weight_bytes, plan_draft_model
from hasten.layers.formats.stored_matrix import dequantize
from hasten.layers.layer_context import LayerContext
from hasten.models.eagle import load_eagle
from hasten.models.load import LM_HEAD, load_decoder, plan_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.runners.backends.choose import choose_backend
from hasten.speculative.drafters import draft_model
from tests.compressed_checkpoints import write_compressed
from tests.engine.constant_step_cost import constant_step_cost
from tests.gguf_files import BLOCK_TYPES, write_gguf
from tests.quantized_checkpoints import write_awq, write_fp8, write_gptq
from tests.tiny_heads import HEADS, write_heads
from tests.tiny_models import TINY, TinyModel

Writer = Callable[[Path, Path], Any]

SMALL: dict[str, Any] = {"max_model_len": 64, "kv_cache_memory": "1MiB", "threads": 1}
PROMPTS = [[5, 9, 80, 3, 3, 41, 5, 9], [7, 7, 8, 7, 7, 8, 7], list(range(20, 40))]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
REPETITIVE = GREEDY.replace(allowed_token_ids=[5, 9, 80])  # its pairs of tokens occur again

TARGETS: dict[str, Writer] = {
    "gptq": partial(write_gptq, desc_act=True, lm_head=True),
    "awq": write_awq,
    "fp8": write_fp8,
    "w8a8": partial(write_compressed, kind="w8a8"),
    "q4_0.gguf": partial(write_gguf, types="Q4_0"),  # the embedding and the lm_head too
    "mixed.gguf": partial(write_gguf, types={"*layers.1*": "Q5_1", "*lm_head*": "Q8_0", "*embed*": "Q5_0", "*": "F16"}),
    "f16.gguf": partial(write_gguf, types="F16"),
}


def no_tokenizer(writer: Any) -> None:
    writer.add_tokenizer_model("no_vocab")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return what writes a target at its first use."""
    folder = tmp_path_factory.mktemp("targets")

    def write(name: str) -> Path:
        if not (folder / name).exists():
            extra = {"edit": no_tokenizer} if name.endswith(".gguf") else {}
            TARGETS[name](folder / name, tiny("llama-gqa"), **extra)
        return folder / name

    return write


@pytest.fixture(scope="module")
def drafters(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> dict[str, dict[str, Any]]:
    """Return the options of each drafter, by name."""
    folder, small = tmp_path_factory.mktemp("drafters"), tiny("qwen2-tied")
    write_gptq(folder / "gptq", small)
    write_gguf(folder / "draft.gguf", small, {"*embed*": "Q4_0", "*": "Q8_0"})
    write_gptq(folder / "draft-vocabulary", small, bits=8, lm_head=True)
    write_draft_ids(folder / "draft-vocabulary", torch.arange(0, 100, 2))
    for name in HEADS:
        write_heads(name, folder / name, tiny("llama-gqa"))
    drafts: dict[str, dict[str, Any]] = {}
    for name in ("gptq", "draft.gguf", "draft-vocabulary"):
        drafts[name] = {"draft_model": str(folder / name), "speculative_method": "draft_model"}
    for name in ("medusa", "medusa-truncated", "medusa-model", "eagle"):
        drafts[name] = {"draft_heads": str(folder / name), "speculative_method": name.partition("-")[0]}
    exits = {"exits": {"exits": str(folder / "exits"), "speculative_method": "self_speculation"}}
    layers = {"layers": {"self_draft_layers": 2, "speculative_method": "self_speculation"}}
    return {**drafts, **exits, **layers, "lookup": {"speculative_method": "prompt_lookup"}}


def generate(llm: LLM) -> list[RequestOutput]:
    prompts = [{"prompt_token_ids": prompt} for prompt in (*PROMPTS, PROMPTS[0])]
    return llm.generate(prompts, [*[GREEDY] * len(PROMPTS), REPETITIVE], use_tqdm=False)


def tokens(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in outputs]


WITH_PARTS_OF_THE_TARGET = ("draft-vocabulary", "medusa-model", "eagle", "exits")
NAMES = (*WITH_PARTS_OF_THE_TARGET, "gptq", "draft.gguf", "medusa", "medusa-truncated", "layers", "lookup")
PAIRS = [(target, name) for target in TARGETS for name in (NAMES if target in ("gptq", "q4_0.gguf") else WITH_PARTS_OF_THE_TARGET)]


@pytest.mark.parametrize(("target", "drafter"), PAIRS)
def test_drafts_change_no_output(
    target: str, drafter: str, targets: Callable[[str], Path], drafters: dict[str, dict[str, Any]]
) -> None:
    model = str(targets(target))
    expected = tokens(generate(LLM(model, speculative_method="off", **SMALL)))
    with constant_step_cost():
        llm = LLM(model, **drafters[drafter], **SMALL)
    assert tokens(generate(llm)) == expected
    assert llm.engine.stats.num_drafted_tokens > 0


@pytest.mark.parametrize("target", TARGETS)
def test_all_drafts_are_accepted_if_the_draft_model_is_the_target(
    target: str, targets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "RANKS", 1)  # no alternatives to the most likely token
    model = str(targets(target))
    with constant_step_cost():
        llm = LLM(model, draft_model=model, speculative_method="draft_model", num_speculative_tokens=5, **SMALL)
    for output in generate(llm):
        assert output.metrics.num_accepted_tokens == output.metrics.num_drafted_tokens > 0


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["gptq", "gptq-8-bits", *BLOCK_TYPES])
def test_the_lm_head_of_a_draft_vocabulary_has_its_rows(
    name: str, backend: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.gguf"
    if name in BLOCK_TYPES:
        monkeypatch.setitem(TINY, "wide", TinyModel("Llama", {"hidden_size": 256, "num_hidden_layers": 1}))
        write_gguf(target, tiny("wide"), {"*lm_head*": name, "*": "F32"})
    else:
        write_gptq(target, tiny("llama-gqa"), lm_head=True, desc_act=True, bits=8 if name == "gptq-8-bits" else 4)
    checkpoint = Checkpoint.open(target)
    assert LM_HEAD in checkpoint.matrices
    kernels = choose_backend(EngineOptions(backend=backend, threads=1))
    decoder = plan_decoder(checkpoint, dtype="float32", ops=kernels.ops, formats=kernels.formats).load().decoder
    context = LayerContext(kernels.ops, kernels.draft_formats(torch.float32), torch.float32)
    ids = torch.tensor([0, 3, 50, 97, 100])
    sliced = decoder.lm_head.slice_rows(ids, context)
    inputs = torch.randn(4, decoder.spec.hidden_size, generator=torch.Generator().manual_seed(1))
    expected = inputs.double() @ dequantize(checkpoint.matrices[LM_HEAD], 0, 101).double()[ids].T
    assert torch.allclose(sliced(inputs).double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("drafter", ["gptq", "draft.gguf", "draft-vocabulary"])
def test_the_planned_memory_of_a_draft_model_is_what_it_takes(
    drafter: str, backend: str, drafters: dict[str, dict[str, Any]], tiny: Callable[[str], Path]
) -> None:
    options = EngineOptions(**drafters[drafter], backend=backend, threads=1)
    kernels = choose_backend(options)
    plan = plan_draft_model(options, kernels)
    assert plan is not None
    planned = drafter_weight_bytes(options, kernels, plan)
    assert planned == plan.weight_bytes
    model = plan.load()
    if backend == "torch":
        assert planned == sum(parameter.nbytes for parameter in model.decoder.parameters())
        return
    taken = kernels.describe(model.decoder)["draft_weight_bytes"]
    vectors = sum(parameter.nbytes for parameter in model.decoder.parameters())
    assert planned == pytest.approx(taken + vectors, rel=0.1)  # small native matrices are padded


@pytest.mark.parametrize("target", ["gptq", "q4_0.gguf"])
def test_an_eagle_head_with_a_copy_of_the_quantised_embedding_shares_it(
    target: str, targets: Callable[[str], Path], drafters: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """The copy holds the weights that the target's embedding means, as those who train on it store them."""
    decoder = load_decoder(targets(target), dtype="float32", ops=TorchOps()).decoder
    head = Path(drafters["eagle"]["draft_heads"])
    stored = load_file(head / "model.safetensors")
    embedding = decoder.embed(torch.arange(101))
    for change, is_shared in ((0.0, True), (1.0, False)):
        folder = tmp_path / f"eagle-{change}"
        folder.mkdir()
        (folder / "config.json").write_text((head / "config.json").read_text())
        save_file({**stored, "embed_tokens.weight": embedding + change}, folder / "model.safetensors")
        loaded = load_eagle(folder, decoder).head
        assert (loaded.embedding.format is decoder.embedding.format) == is_shared
