"""llama.cpp through llama-cpp-python's low-level interface: bf16, Q8_0, Q4_0, and its q8_0 cache for the long context."""

from importlib.metadata import version
from typing import Any

import llama_cpp as lib
import numpy as np

from engines.workers.gguf_file import KINDS, write
from engines.workers.loop import Ids, Setup, work

CHUNK = 512  # tokens per physical batch, llama.cpp's default


class LlamaCpp:
    context: Any

    def convert(self, setup: Setup) -> None:
        write(setup.checkpoint, setup.converted / "model.gguf", setup.weights)

    def load(self, setup: Setup) -> dict[str, Any]:
        lib.llama_backend_init()
        file = setup.converted / "model.gguf"
        self.model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_seq_max = 8
        params.n_ctx = max(2048, setup.room)
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = setup.threads
        params.kv_unified = True
        if setup.kv == "int8":
            params.type_k = params.type_v = lib.GGML_TYPE_Q8_0
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(CHUNK, 0, 1)
        return {
            "llama_cpp_python": version("llama_cpp_python"),
            "weights": KINDS[setup.weights].name,
            "system": lib.llama_print_system_info().decode(),
        }

    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self.last = []
        rows = [(token, place, number) for number, ids in enumerate(prompts) for place, token in enumerate(ids)]
        ends = {(number, len(ids) - 1) for number, ids in enumerate(prompts)}
        for begin in range(0, len(rows), CHUNK):
            chunk = rows[begin : begin + CHUNK]
            self.last += self._decode(chunk, [(number, place) in ends for _, place, number in chunk])
        self.places = [len(ids) for ids in prompts]
        return self.last

    def step(self) -> Ids:
        rows = [(token, place, number) for number, (token, place) in enumerate(zip(self.last, self.places, strict=True))]
        self.last = self._decode(rows, [True] * len(rows))
        self.places = [place + 1 for place in self.places]
        return self.last

    def _decode(self, rows: list[tuple[int, int, int]], wanted: list[bool]) -> Ids:
        """The best next token of each wanted row of (token, place, sequence)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, place, number) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, place
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, number
            batch.logits[i] = wanted[i]
        if lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        return [self._best(i) for i, is_wanted in enumerate(wanted) if is_wanted]

    def _best(self, row: int) -> int:
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, row), (self.vocabulary,))
        return int(logits.argmax())


if __name__ == "__main__":
    work(LlamaCpp())
