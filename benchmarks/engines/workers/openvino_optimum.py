"""OpenVINO with the model of optimum-intel, called through an inference request.

This costs less per token than ``generate``.
"""

from typing import Any

import numpy as np
import openvino

from engines.workers.openvino_model import export, properties, versions
from engines.workers.worker import Ids, Setup, run_worker


class OpenVino:
    request: Any

    def convert(self, setup: Setup) -> None:
        export(setup)

    def load(self, setup: Setup) -> dict[str, Any]:
        compiled = openvino.Core().compile_model(setup.converted / "openvino_model.xml", "CPU", properties(setup))
        self.request = compiled.create_infer_request()
        names = ("INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        return {**versions(), **{name: str(compiled.get_property(name)) for name in names}}

    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        self.request.reset_state()
        self.length = 0
        return self._run(np.array(prompts, np.int64))

    def step(self) -> Ids:
        return self._run(np.array(self.last, np.int64)[:, None])

    def _run(self, ids_BT: Any) -> Ids:
        rows, new = ids_BT.shape
        positions = np.arange(self.length, self.length + new, dtype=np.int64)
        self.length += new
        self.request.infer(
            {
                "input_ids": ids_BT,
                "attention_mask": np.ones((rows, self.length), np.int64),
                "position_ids": np.broadcast_to(positions, (rows, new)).copy(),
                "beam_idx": np.arange(rows, dtype=np.int32),
            },
            share_inputs=True,
        )
        logits = self.request.get_tensor("logits").data
        self.last: Ids = logits[:, -1].argmax(-1).tolist()
        return self.last


if __name__ == "__main__":
    run_worker(OpenVino())
