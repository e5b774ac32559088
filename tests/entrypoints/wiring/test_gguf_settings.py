"""What is wrong with a GGUF file is said of the file: it has no config.json, and it is no folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from tests.gguf_files import write_gguf

from hasten import LLM, SamplingParams
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import HastenError

SMALL: dict[str, Any] = {"max_model_len": 32, "kv_cache_memory": "1MiB", "threads": 1}
NO_TOKEN = 2**32 - 1

Edit = Callable[[GGUFWriter], None]


def test_ids_that_mean_no_token_end_no_text(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    def edit(writer: GGUFWriter) -> None:
        for name in ("bos", "eos", "eot"):
            writer.kv_data[0].pop(f"tokenizer.ggml.{name}_token_id", None)
        writer.add_tokenizer_model("no_vocab")
        writer.add_bos_token_id(NO_TOKEN)
        writer.add_eos_token_id(NO_TOKEN)
        writer.add_int32("tokenizer.ggml.eot_token_id", -1)
        writer.add_eom_token_id(7)

    write_gguf(tmp_path / "model.gguf", tiny("llama-gqa"), edit=edit)
    assert Checkpoint.open(tmp_path / "model.gguf").generation_config == {"eos_token_id": [7]}
    greedy = SamplingParams(temperature=0, max_tokens=4)
    llm = LLM(str(tmp_path / "model.gguf"), **SMALL)
    assert llm.generate({"prompt_token_ids": [5, 9]}, greedy, use_tqdm=False)[0].outputs[0].token_ids


def change(key: str, add: str, *value: object) -> Edit:
    """Return what replaces a value of the metadata."""

    def edit(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("no_vocab")
        writer.kv_data[0].pop(key, None)
        getattr(writer, add)(key, *value)

    return edit


def add_tensor(writer: GGUFWriter) -> None:
    writer.add_tensor("blk.9.attn_norm.weight", np.ones(64, np.float32))


def add_bias(writer: GGUFWriter) -> None:
    writer.add_tensor("blk.2.attn_q.bias", np.ones(64, np.float32))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("llama.block_count", "add_uint32", 0), r"num_hidden_layers=0 .*correct the metadata of {file} if it is wrong"),
        (change("llama.rope.freq_base", "add_float32", 0.5), r"rope_theta=0.5 .*correct the metadata of {file} if it is wrong"),
        (
            change("llama.feed_forward_length", "add_uint32", 80),
            r"of the llama model that its metadata describes .*expected",
        ),
        (
            add_tensor,
            r"blk\.9\.attn_norm\.weight \[64\] is not expected\. Download the file again, or convert the original model again",
        ),
        (add_bias, r"{file} has biases that are not zero.*: model.layers.2.self_attn.q_proj.bias \[64\]\. Download the file again"),
        (change("tokenizer.ggml.eos_token_id", "add_uint32", 101), r"eos_token_id in the metadata of {file} is not a token id"),
        (change("tokenizer.ggml.eos_token_id", "add_string", "x"), r"eos_token_id in the metadata of {file} is not a token id"),
        (change("general.sampling.top_p", "add_float32", 2.0), r"the sampling in the metadata of {file} is wrong: .*top_p"),
    ],
)
def test_faults_are_those_of_the_file(edit: Edit, message: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny("llama-gqa"), edit=edit)
    with pytest.raises(HastenError, match=message.format(file=file)) as error:
        LLM(str(file), **SMALL)
    assert "config.json" not in str(error.value)


@pytest.mark.parametrize("option", ["draft_heads", "exits"])
def test_a_gguf_file_holds_no_heads(option: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny("llama-gqa"))
    with pytest.raises(HastenError, match=f"{file} is a GGUF file, which holds a whole model"):
        LLM(str(tiny("llama-gqa")), **{option: str(file)}, **SMALL)
