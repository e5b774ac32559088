"""The engines with their weights and workloads, the phases, and the goals."""

from dataclasses import dataclass, field

ONE, MANY = ("prefill-512", "decode-1", "decode-8"), ("mixed",)
ALL = (*ONE, *MANY)


@dataclass(frozen=True, slots=True)
class Converter:
    """What writes the checkpoint that an engine reads. Engines with the same converter share the result."""

    folder: str  # its name begins with this and ends with the weights
    program: str  # a module of engines.workers
    environment: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine's part in a phase: its weights, the type in which it multiplies them, and its workloads."""

    weights: str  # of the layers: a key of ``shapes.BYTES``, which the worker is asked for
    lm_head: str  # a key of ``shapes.BYTES``
    activations: str  # type of the input of products and what shares a scale, as the engine documents it
    label: str = ""  # the engine's own name of the weights
    workloads: tuple[str, ...] = ONE
    converter: Converter | None = None  # None: the engine itself

    @property
    def has_int8_activations(self) -> bool:
        return self.activations.startswith("int8")


def alike(weights: str, activations: str, label: str = "", workloads: tuple[str, ...] = ONE) -> Entry:
    """Return the entry of an engine that stores the lm_head like the layers."""
    return Entry(weights, weights, activations, label, workloads)


@dataclass(frozen=True, slots=True, eq=False)
class EngineSpec:
    """One engine, and its part in each phase."""

    name: str
    program: str  # a module of engines.workers
    environment: str | None  # name of a requirements file and its virtual environment; None: the current environment
    entries: dict[str, Entry]  # weights of a phase -> its part
    long: bool = False  # runs the long context with int8 weights and an 8-bit KV cache
    required: bool = True  # its goals are void without it
    converted: str = ""  # folder of the converted checkpoint that it shares with another engine

    def runs(self, weights: str, kv: str | None, work: str) -> bool:
        if kv:
            return self.long and work == "long" and weights == "int8"
        return weights in self.entries and work in self.entries[weights].workloads

    def converter(self, weights: str) -> Converter:
        """Return what converts the checkpoint for the phase with these weights."""
        own = Converter(self.converted or self.program, self.program, self.environment)
        return self.entries[weights].converter or own


@dataclass(frozen=True, slots=True)
class Phase:
    """Engines with comparable weights that are loaded together and alternate.

    One phase fits in 24 GB; all phases do not.
    """

    weights: str
    kv: str | None
    workloads: tuple[str, ...]
    # workload -> repeats instead of --repeats. transformers needs minutes for the mixed requests, so it has one repeat.
    repeats: dict[str, int] = field(default_factory=dict)


# float32 is rounded to bf16 where the processor has AMX (hasten) or any bf16 instructions (OpenVINO). hasten multiplies integer
# codes with inputs of 16 bits, which are closer to float32 than bf16 is, unless int8 activations are asked for.
FLOAT, BF16, INT16 = "float32", "bf16", "int16, groups of 128"
ROW, GROUP = "int8, scale per row", "int8, groups of 32"
GPTQ, FP8, GROUPS = "GPTQ int4, groups of 128", "FP8, blocks of 128 x 128", "int4, groups of 128"
# Published checkpoints have a bf16 lm_head. Other engines quantise it, so hasten also reads a checkpoint with a quantised one.
LM_HEAD_TOO = Converter("hasten-lm_head", "hasten", None)
LLAMA_CPP = Converter("llama_cpp", "llama_cpp", "llama_cpp")

HASTEN, HASTEN_BF16, HASTEN_FLOAT, HASTEN_INT8 = "hasten", "hasten bf16", "hasten float", "hasten int8"
FLOAT_LM_HEAD, INT8_LM_HEAD = "hasten float, quantised lm_head", "hasten int8, quantised lm_head"
ENGINES = (
    EngineSpec(
        HASTEN,
        "hasten",
        None,
        {
            "bf16": alike("bf16", FLOAT, workloads=ALL),
            "int8": alike("int8", ROW, workloads=ALL),
            "int4": alike("int4", ROW, workloads=ALL),
        },
        long=True,
    ),
    EngineSpec(
        HASTEN_FLOAT,
        "hasten",
        None,
        {
            "int4-g128": Entry("int4-g128", "bf16", INT16, GPTQ),
            "q4_k_m": Entry("q4_k_m", "q6_k", INT16, "Q4_K_M", converter=LLAMA_CPP),
            "fp8": Entry("fp8", "bf16", FLOAT, FP8),
        },
    ),
    EngineSpec(
        HASTEN_INT8,
        "hasten",
        None,
        {
            "int4-g128": Entry("int4-g128", "bf16", ROW, GPTQ),
            "q4_k_m": Entry("q4_k_m", "q6_k", ROW, "Q4_K_M", converter=LLAMA_CPP),
        },
    ),
    EngineSpec(
        FLOAT_LM_HEAD,
        "hasten",
        None,
        {
            "int4-g128": Entry("int4-g128", "int4-g128", INT16, GPTQ, converter=LM_HEAD_TOO),
            "fp8": Entry("fp8", "fp8", FLOAT, FP8, converter=LM_HEAD_TOO),
        },
    ),
    EngineSpec(INT8_LM_HEAD, "hasten", None, {"int4-g128": Entry("int4-g128", "int4-g128", ROW, GPTQ, converter=LM_HEAD_TOO)}),
    EngineSpec(HASTEN_BF16, "hasten", None, {"fp8": alike("bf16", FLOAT)}),
    EngineSpec("transformers", "transformers_generate", "torch", {"bf16": alike("bf16", BF16, workloads=ALL)}),
    EngineSpec(
        "torch.compile",
        "torch_compile",
        "torch",
        {weights: alike(weights, BF16, workloads=ONE[1:]) for weights in ("bf16", "int8", "int4")},
    ),
    EngineSpec(
        "llama.cpp",
        "llama_cpp",
        "llama_cpp",
        {
            "bf16": alike("bf16", BF16),
            "int8": alike("int8", GROUP, "Q8_0"),
            "int4": alike("int4", GROUP, "Q4_0"),
            "int4-g128": alike("int4", GROUP, "Q4_0, groups of 32"),  # its nearest type
            "q4_k_m": Entry("q4_k_m", "q6_k", "int8, groups of 256", "Q4_K_M"),
        },
        long=True,
    ),
    EngineSpec(
        "OpenVINO",
        "openvino_optimum",
        "openvino",
        {
            "bf16": alike("bf16", FLOAT),
            "int8": alike("int8", GROUP),
            "int4": alike("int4", GROUP, GROUPS),
            "int4-g128": alike("int4", GROUP, GROUPS),
        },
        long=True,
        converted="openvino",
    ),
    EngineSpec(
        "OpenVINO GenAI",
        "openvino_continuous",
        "openvino",
        {
            "bf16": alike("bf16", FLOAT),
            "int8": alike("int8", GROUP, workloads=ALL),
            "int4": alike("int4", GROUP, GROUPS, workloads=ALL),
            "int4-g128": alike("int4", GROUP, GROUPS),
        },
        long=True,
        converted="openvino",
    ),
    EngineSpec("CTranslate2", "ctranslate2_generator", "ctranslate2", {"int8": alike("int8", ROW)}),
    EngineSpec(
        "onnxruntime-genai",
        "onnxruntime_genai",
        "onnxruntime_genai",
        {
            "int8": alike("int8", GROUP),
            "int4": alike("int4", "int8, groups of 128", GROUPS),
            "int4-g128": alike("int4", "int8, groups of 128", GROUPS),
        },
        required=False,
    ),
)
PHASES = (
    Phase("bf16", None, ALL, {"mixed": 1}),
    Phase("int8", None, ALL),
    Phase("int4", None, ALL),
    Phase("int8", "int8", ("long",)),
    # Checkpoints that are quantised before hasten reads them.
    Phase("int4-g128", None, ONE),
    Phase("q4_k_m", None, ONE),
    Phase("fp8", None, ONE),
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
    engine: str = HASTEN
    others: tuple[str, ...] = ()  # empty: all engines but hasten
    factor_avx2: float | None = None  # without AVX-512; None: the same factor


GOALS = (
    Goal("decode, batch 1, bf16", "decode-1", 1.6, "bf16"),
    Goal("decode, batch 1, int8", "decode-1", 1.7, "int8"),
    Goal("decode, batch 1, int4", "decode-1", 2.2, "int4"),
    Goal("decode, batch 8, int8", "decode-8", 2.5, "int8"),
    Goal("prefill 512, int8", "prefill-512", 4.0, "int8", aim=5.0),
    Goal("prefill 512, bf16", "prefill-512", 3.5, "bf16", aim=4.0),
    Goal("long context, int8 weights, 8-bit KV", "long", 2.0, "int8", kv="int8"),
    Goal("mixed requests, continuous batching", "mixed", 3.0, None),
    # Against engines that quantise the lm_head, hasten has a quantised one.
    Goal("decode, batch 1, int4-g128, float activations", "decode-1", 1.2, "int4-g128", aim=1.5, engine=FLOAT_LM_HEAD),
    Goal("decode, batch 1, int4-g128, int8 activations", "decode-1", 1.2, "int4-g128", aim=1.5, engine=INT8_LM_HEAD),
    Goal("decode, batch 8, int4-g128, float activations", "decode-8", 1.6, "int4-g128", aim=2.0, engine=FLOAT_LM_HEAD),
    Goal("decode, batch 8, int4-g128, int8 activations", "decode-8", 1.6, "int4-g128", aim=2.0, engine=INT8_LM_HEAD),
    Goal("decode, batch 1, the same Q4_K_M file, float activations", "decode-1", 1.2, "q4_k_m", engine=HASTEN_FLOAT),
    Goal("decode, batch 1, the same Q4_K_M file, int8 activations", "decode-1", 1.2, "q4_k_m", engine=HASTEN_INT8),
    Goal(
        "decode, batch 1, FP8 beside hasten's bf16",
        "decode-1",
        1.3,
        "fp8",
        engine=HASTEN_FLOAT,
        others=(HASTEN_BF16,),
        factor_avx2=1.1,
    ),
)
