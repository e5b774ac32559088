"""onnxruntime-genai with the model of its own builder: int8 and int4 with integer activations."""

import json
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import onnxruntime_genai as genai

from engines.workers.worker import Ids, Setup, run_worker


class OnnxRuntimeGenAi:
    model: Any

    def convert(self, setup: Setup) -> None:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(setup.checkpoint)]
        builder += ["-o", str(setup.converted), "-c", str(setup.converted / "cache"), "-p", setup.weights, "-e", "cpu"]
        options = ["int4_block_size=128", "int4_accuracy_level=4"] if setup.weights == "int4" else []
        subprocess.run(builder + (["--extra_options", *options] if options else []), check=True, stdout=sys.stderr)

    def load(self, setup: Setup) -> dict[str, Any]:
        file = setup.converted / "genai_config.json"
        config = json.loads(file.read_text())
        options = config["model"]["decoder"]["session_options"]
        options |= {"intra_op_num_threads": setup.threads, "inter_op_num_threads": 1}
        file.write_text(json.dumps(config))
        self.model = genai.Model(str(setup.converted))
        return {name: version(name) for name in ("onnxruntime", "onnxruntime-genai")}

    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        length = len(prompts[0]) + tokens + 2
        params = genai.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, batch_size=len(prompts), max_length=length, min_length=length)
        self.generator = genai.Generator(self.model, params)
        self.generator.append_tokens(np.array(prompts, np.int32))
        return self.step()

    def step(self) -> Ids:
        self.generator.generate_next_token()
        return [int(token) for token in self.generator.get_next_tokens()]


if __name__ == "__main__":
    run_worker(OnnxRuntimeGenAi())
