"""The engines with their weights and workloads, the phases, and the goals."""

from dataclasses import dataclass, field

ONE, MANY = ("prefill-512", "decode-1", "decode-8"), ("mixed",)


@dataclass(frozen=True, slots=True, eq=False)
class EngineSpec:
    """One engine, and the workloads that it runs."""

    name: str
    program: str  # a module of engines.workers
    environment: str | None  # name of a requirements file and its virtual environment; None: the current environment
    workloads: dict[str, tuple[str, ...]]  # weights -> names of workloads
    long: bool = False  # runs the long context with int8 weights and an 8-bit KV cache
    required: bool = True  # its goals are void without it
    converted: str = ""  # folder of the converted checkpoint that it shares with another engine

    def runs(self, weights: str, kv: str | None, work: str) -> bool:
        return self.long and work == "long" and weights == "int8" if kv else work in self.workloads.get(weights, ())


@dataclass(frozen=True, slots=True)
class Phase:
    """Engines with the same weights that are loaded together and alternate.

    One phase fits in 24 GB; all phases do not.
    """

    weights: str
    kv: str | None
    workloads: tuple[str, ...]
    # workload -> repeats instead of --repeats. transformers needs minutes for the mixed requests, so it has one repeat.
    repeats: dict[str, int] = field(default_factory=dict)


HASTEN = "hasten"
ENGINES = (
    EngineSpec(HASTEN, "hasten", None, dict.fromkeys(("bf16", "int8", "int4"), (*ONE, *MANY)), long=True),
    EngineSpec("transformers", "transformers_generate", "torch", {"bf16": (*ONE, *MANY)}),
    EngineSpec("torch.compile", "torch_compile", "torch", dict.fromkeys(("bf16", "int8", "int4"), ONE[1:])),
    EngineSpec("llama.cpp", "llama_cpp", "llama_cpp", dict.fromkeys(("bf16", "int8", "int4"), ONE), long=True),
    EngineSpec(
        "OpenVINO", "openvino_optimum", "openvino", dict.fromkeys(("bf16", "int8", "int4"), ONE), long=True, converted="openvino"
    ),
    EngineSpec(
        "OpenVINO GenAI",
        "openvino_continuous",
        "openvino",
        {"bf16": ONE, "int8": (*ONE, *MANY), "int4": (*ONE, *MANY)},
        long=True,
        converted="openvino",
    ),
    EngineSpec("CTranslate2", "ctranslate2_generator", "ctranslate2", {"int8": ONE}),
    EngineSpec("onnxruntime-genai", "onnxruntime_genai", "onnxruntime_genai", {"int8": ONE, "int4": ONE}, required=False),
)
PHASES = (
    Phase("bf16", None, (*ONE, *MANY), {"mixed": 1}),
    Phase("int8", None, (*ONE, *MANY)),
    Phase("int4", None, (*ONE, *MANY)),
    Phase("int8", "int8", ("long",)),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal: hasten at least ``factor`` times as fast as the best other engine."""

    name: str
    workload: str
    factor: float
    weights: str | None  # None: each side with its fastest weights
    kv: str | None = None
    aim: float | None = None


GOALS = (
    Goal("decode, batch 1, bf16", "decode-1", 1.6, "bf16"),
    Goal("decode, batch 1, int8", "decode-1", 1.7, "int8"),
    Goal("decode, batch 1, int4", "decode-1", 2.2, "int4"),
    Goal("decode, batch 8, int8", "decode-8", 2.5, "int8"),
    Goal("prefill 512, int8", "prefill-512", 4.0, "int8", aim=5.0),
    Goal("prefill 512, bf16", "prefill-512", 3.5, "bf16", aim=4.0),
    Goal("long context, int8 weights, 8-bit KV", "long", 2.0, "int8", kv="int8"),
    Goal("mixed requests, continuous batching", "mixed", 3.0, None),
)
