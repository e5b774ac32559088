"""Who takes part, with which weights, in which works; and the phases, whose engines are in memory together."""

from dataclasses import dataclass, field

ONE, MANY = ("prefill-512", "decode-1", "decode-8"), ("mixed",)


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    name: str
    program: str  # a module of engines.workers
    environment: str | None  # a file of requirements, and the virtual environment's name; None: the one that runs this
    works: dict[str, tuple[str, ...]]  # weights -> works that count
    long: bool = False  # an 8-bit cache of its own for the long context, with int8 weights
    required: bool = True  # missing, it voids the lines it belongs to
    converted: str = ""  # folder that it shares with another entrant

    def runs(self, weights: str, kv: str | None, work: str) -> bool:
        return self.long and work == "long" and weights == "int8" if kv else work in self.works.get(weights, ())


@dataclass(frozen=True, slots=True)
class Phase:
    """Engines of the same weights, loaded together, in turn. All of them fit in 24 GB; all phases at once would not."""

    weights: str
    kv: str | None
    works: tuple[str, ...]
    # Turns of a work in place of --repeats. transformers needs minutes for the mixed requests: it has one turn, after a warm-up.
    turns: dict[str, int] = field(default_factory=dict)


HASTEN = "hasten"
ROSTER = (
    Entrant(HASTEN, "hasten", None, dict.fromkeys(("bf16", "int8", "int4"), (*ONE, *MANY)), long=True),
    Entrant("transformers", "transformers_generate", "torch", {"bf16": (*ONE, *MANY)}),
    Entrant("torch.compile", "torch_compile", "torch", dict.fromkeys(("bf16", "int8", "int4"), ONE[1:])),
    Entrant("llama.cpp", "llama_cpp", "llama_cpp", dict.fromkeys(("bf16", "int8", "int4"), ONE), long=True),
    Entrant(
        "OpenVINO", "openvino_optimum", "openvino", dict.fromkeys(("bf16", "int8", "int4"), ONE), long=True, converted="openvino"
    ),
    Entrant(
        "OpenVINO GenAI",
        "openvino_continuous",
        "openvino",
        {"bf16": ONE, "int8": (*ONE, *MANY), "int4": (*ONE, *MANY)},
        long=True,
        converted="openvino",
    ),
    Entrant("CTranslate2", "ctranslate2_generator", "ctranslate2", {"int8": ONE}),
    Entrant("onnxruntime-genai", "onnxruntime_genai", "onnxruntime_genai", {"int8": ONE, "int4": ONE}, required=False),
)
PHASES = (
    Phase("bf16", None, (*ONE, *MANY), {"mixed": 1}),
    Phase("int8", None, (*ONE, *MANY)),
    Phase("int4", None, (*ONE, *MANY)),
    Phase("int8", "int8", ("long",)),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A line of the goal's table: hasten at least ``factor`` times the best peer."""

    words: str
    work: str
    factor: float
    weights: str | None  # None: the best of all weights, on both sides
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
