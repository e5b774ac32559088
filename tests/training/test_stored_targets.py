"""Targets that are GGUF files or quantised: plain weights are trained on, and quantised ones are refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.compressed_checkpoints import write_compressed
from tests.engine.constant_step_cost import constant_step_cost
from tests.gguf_files import write_gguf
from tests.quantized_checkpoints import write_awq, write_fp8, write_gptq
from tests.text.gguf_vocabularies import add_letters
from tests.training.conftest import stop_after

from hasten import LLM, SamplingParams
from hasten.core.errors import HastenError, UnsupportedModel
from hasten.training.options import TrainOptions
from hasten.training.recipes import DraftModelRecipe, EagleRecipe, EarlyExitRecipe, MedusaRecipe, Recipe
from hasten.training.target_model import TargetModel
from hasten.training.train import train

OPTIONS = TrainOptions(steps=2, batch=1, seq_len=32, save_every=0)
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
SMALL: dict[str, Any] = {"max_model_len": 32, "kv_cache_memory": "1MiB"}
QUANTISED: dict[str, Callable[[Path, Path], Any]] = {
    "gptq": write_gptq,
    "awq": write_awq,
    "fp8": write_fp8,
    "w4a16": partial(write_compressed, kind="w4a16"),
    "model.gguf": write_gguf,
    "mixed.gguf": partial(write_gguf, types={"*layers.1.mlp.up_proj*": "Q4_0", "*": "F16"}),
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(" ".join(["ab cd ef gh"] * 300))
    return tmp_path / "text"


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_targets_are_refused(name: str, tiny: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    target = tmp_path / name
    QUANTISED[name](target, tiny("llama-gqa"))
    with pytest.raises(UnsupportedModel, match=rf"^the weights of {target} are quantised.*Train on the unquantised model[^.]*\.$"):
        TargetModel.load(target)
    with pytest.raises(UnsupportedModel, match="are quantised"):
        train(str(target), text, tmp_path / "out", MedusaRecipe(), OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (MedusaRecipe(heads=2), "draft_heads"),
        (EagleRecipe(ttt_steps=2), "draft_heads"),
        (DraftModelRecipe(layers=1, hidden=32), "draft_model"),
        (EarlyExitRecipe(layers=(1,)), "exits"),
    ],
    ids=["medusa", "eagle", "draft", "exits"],
)
@pytest.mark.parametrize("types", ["F16", "BF16"])
def test_what_is_trained_on_a_plain_gguf_file_serves_it(
    recipe: Recipe, options: str, types: str, tiny: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    target, out = tmp_path / "model.gguf", tmp_path / "out"
    write_gguf(target, tiny("llama-llama3"), types, edit=add_letters)
    assert train(str(target), text, out, recipe, OPTIONS) is not None
    method = {"draft_heads": recipe.name, "exits": "self_speculation"}.get(options, options)
    with constant_step_cost():
        drafting = LLM(str(target), **{options: str(out)}, speculative_method=method, **SMALL)
    alone = LLM(str(target), speculative_method="off", **SMALL)
    found, expected = (llm.generate("ab cd", GREEDY, use_tqdm=False)[0].outputs[0].token_ids for llm in (drafting, alone))
    assert found == expected
    assert drafting.engine.stats.num_drafted_tokens > 0


def test_a_target_needs_a_tokenizer(tiny: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny("llama-gqa"), "F16", edit=lambda writer: writer.add_tokenizer_model("no_vocab"))
    with pytest.raises(HastenError, match=r"no tokenizer to encode text with\. Use a file that has one\."):
        train(str(tmp_path / "model.gguf"), text, tmp_path / "out", MedusaRecipe(), OPTIONS)


def test_a_run_is_not_resumed_after_a_change_of_its_initial_gguf_file(
    tiny: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    target, initial, out = tmp_path / "model.gguf", tmp_path / "initial.gguf", tmp_path / "out"
    for path in (target, initial):
        write_gguf(path, tiny("llama-gqa"), "F32", edit=add_letters)
    recipe = DraftModelRecipe(init_from=str(initial))
    assert train(str(target), text, out, recipe, OPTIONS, should_stop=stop_after(1)) is None
    content = bytearray(initial.read_bytes())
    content[-40] ^= 1  # in the data: metadata and sizes are equal
    initial.write_bytes(content)
    with pytest.raises(HastenError, match="init_from_sha256"):
        train(str(target), text, out, recipe, OPTIONS)
