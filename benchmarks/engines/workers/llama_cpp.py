"""llama.cpp through llama-cpp-python: bf16, Q8_0, Q4_0, Q4_K_M, and a q8_0 KV cache for the long context."""

import ctypes
from importlib.metadata import version
from typing import Any

import llama_cpp as lib
import numpy as np

from engines.workers.gguf_file import write
from engines.workers.worker import Ids, Setup, run_worker

CHUNK = 512  # tokens per physical batch, llama.cpp's default


class LlamaCpp:
    context: Any

    def convert(self, setup: Setup) -> None:
        file = setup.converted / "model.gguf"
        if setup.weights != "q4_k_m":
            write(setup.checkpoint, file, setup.weights)
            return
        source = file.with_suffix(".bf16")
        write(setup.checkpoint, source, "bf16")
        params = lib.llama_model_quantize_default_params()
        params.ftype, params.nthread = lib.LLAMA_FTYPE_MOSTLY_Q4_K_M, setup.threads
        if lib.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(params)):
            raise RuntimeError("llama_model_quantize failed")
        source.unlink()

    def load(self, setup: Setup) -> dict[str, Any]:
        lib.llama_backend_init()
        file = setup.converted / "model.gguf"
        self.model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_seq_max = 8
        params.n_ctx = max(2048, setup.max_len)
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = setup.threads
        params.kv_unified = True
        if setup.kv == "int8":
            params.type_k = params.type_v = lib.GGML_TYPE_Q8_0
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp created no context")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(CHUNK, 0, 1)
        description = ctypes.create_string_buffer(128)
        lib.llama_model_desc(self.model, description, len(description))
        return {
            "llama_cpp_python": version("llama_cpp_python"),
            "model": description.value.decode(),
            "system": lib.llama_print_system_info().decode(),
        }

    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self.last = []
        rows = [(token, position, number) for number, ids in enumerate(prompts) for position, token in enumerate(ids)]
        last_rows = {(number, len(ids) - 1) for number, ids in enumerate(prompts)}
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            self.last += self._decode(chunk, [(number, position) in last_rows for _, position, number in chunk])
        self.positions = [len(ids) for ids in prompts]
        return self.last

    def step(self) -> Ids:
        rows = [(token, position, number) for number, (token, position) in enumerate(zip(self.last, self.positions, strict=True))]
        self.last = self._decode(rows, [True] * len(rows))
        self.positions = [position + 1 for position in self.positions]
        return self.last

    def _decode(self, rows: list[tuple[int, int, int]], needs_logits: list[bool]) -> Ids:
        """Decode rows of (token, position, sequence) and return the top token of those that need logits."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, number) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, number
            batch.logits[i] = needs_logits[i]
        if lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        return [self._most_likely_token(i) for i, needed in enumerate(needs_logits) if needed]

    def _most_likely_token(self, row: int) -> int:
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, row), (self.vocabulary,))
        return int(logits.argmax())


if __name__ == "__main__":
    run_worker(LlamaCpp())
