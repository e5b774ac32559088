"""Proof that a refactor changes no output: answers of all drafters and exit rules, bit for bit.

``python benchmarks/same_outputs.py dump before.json`` with the code before the refactor, and ``after.json`` with the code after it.
``python benchmarks/same_outputs.py compare before.json after.json`` exits with 0 if all answers are equal, else with 1.

200 prompts from held-out text, of 4 to 200 tokens, some with long shared beginnings, in eight kinds of settings. Every
configuration of the engine answers all of them; beam search has no exit rules. A dump holds token ids,
log-probabilities, scores, texts, reasons for the end and exit layers, with numbers as ``float.hex()``. Both dumps must come from
one machine, because another processor has other kernels, and from the same versions of PyTorch and tokenizers. A dump takes about
two minutes on two idle cores.

Some combinations are left out, because two dumps with the same code differ there: acceptance "rejection" and "typical" with
``draft_model``, ``medusa``, ``eagle``, ``self_speculation`` and ``auto``. The length of their drafts depends on measured times, and
with these rules another draft may lead to another answer. Their requests of that kind are answered with acceptance "exact".
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import hasten
from hasten import LLM, CompletionOutput, HastenError, RequestOutput, SamplingParams

HELDOUT = Path(hasten.__file__).parent / "demo" / "heldout.jsonl"
NUM_PROMPTS = 200
SHORTEST, LONGEST = 4, 200  # tokens of a prompt
STEMS = (48, 96, 160)  # tokens of the shared beginnings
SHOWN = 5  # differences that are printed of each configuration, one per request
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

# Old names of options and of their values, for comparison with commits before the renaming.
OLD_NAMES = {
    "quantization": "quantize",
    "speculative_method": "speculation",
    "fixed": "layer",
    "token_table": "tokens",
    "prompt_hash": "texts",
}

ACCEPTANCES = ("rejection", "typical")
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy with penalties": {"temperature": 0.0, "repetition_penalty": 1.15, "presence_penalty": 0.4, "logprobs": 5},
    "sampling": {"temperature": 0.8},
    "top-k and top-p": {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "n": 3},
    "min-p": {"temperature": 0.9, "min_p": 0.05, "bad_words": ["self", "return"], "no_repeat_ngram_size": 3},
    "typical-p": {"temperature": 1.1, "typical_p": 0.9},
    "beams": {"temperature": 0.0, "beam_width": 4, "n": 2, "length_penalty": 0.8},
    "acceptance": {"temperature": 0.8, "stop": [" the", "self", "\n\n"]},  # its rule is one of ACCEPTANCES
}
WEIGHTS: dict[str, dict[str, Any]] = {"float32": {}, "int8": {"quantization": "int8"}}
DRAFTERS: dict[str, dict[str, Any]] = {
    "prompt_lookup": {},
    "suffix": {},
    "draft_model": {"draft_model": "demo-draft"},
    "medusa": {"draft_heads": "demo-medusa"},
    "eagle": {"draft_heads": "demo-eagle"},
    "self_speculation": {"exits": "demo-exits"},
    "auto": {"draft_model": "demo-draft", "draft_heads": "demo-eagle", "exits": "demo-exits"},
}
# Drafters whose drafts depend on the text alone. Those of the others depend on measured times, so that answers by "rejection" and
# "typical" differ from run to run.
BY_TEXT = ("prompt_lookup", "suffix")
EXIT_RULES: dict[str, dict[str, Any]] = {
    "fixed": {"exit_layer": 5},
    "softmax": {"exit_threshold": 0.6, "exit_decay": 2.0},
    "saturation": {"exit_threshold": 0.96},
    "classifier": {"exit_tolerance": 0.05},
    "entropy": {"exit_threshold": 0.7},
    "token_table": {},
    "prompt_hash": {},
}

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Configuration:
    """An engine and what its requests have in common."""

    name: str
    options: dict[str, Any]  # of the engine
    exits: dict[str, Any] = field(default_factory=dict)  # settings of an exit rule; beam search has none
    keeps_acceptance: bool = True  # False: acceptance is "exact" in all requests


def configurations() -> Iterator[Configuration]:
    """Configurations with equal options of the engine stand one after the other."""
    for weights, chosen in WEIGHTS.items():
        yield Configuration(f"{weights}, off", {"speculative_method": "off", **chosen})
        for drafter, needed in DRAFTERS.items():
            options = {"speculative_method": drafter, **needed, **chosen}
            by_text = drafter in BY_TEXT
            yield Configuration(f"{weights}, {drafter}", options, keeps_acceptance=by_text)
        for rule, settings in EXIT_RULES.items():
            options = {"speculative_method": "off", "exits": "demo-exits", **chosen}
            yield Configuration(f"{weights}, exit rule {rule}", options, {"exit_rule": rule, **settings})


def with_known_names(make: Callable[..., Made], given: Mapping[str, Any]) -> Made:
    """With the new names, or with the old ones where those are unknown."""
    try:
        return make(**given)
    except HastenError:
        old = {name: OLD_NAMES.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
        return make(**{OLD_NAMES.get(name, name): value for name, value in old.items()})


def engine(options: Mapping[str, Any]) -> LLM:
    limits = {"kv_cache_memory": "64MiB", "max_model_len": 256, "max_num_seqs": 24}
    fixed = {"dtype": "float32", "backend": "cpu", "threads": 2, "seed": 0}
    return with_known_names(partial(LLM, "demo"), {**fixed, **limits, **options})


def prompts(llm: LLM) -> list[list[int]]:
    """The same ones in every run."""
    draw = random.Random(7)
    with HELDOUT.open(encoding="utf-8") as lines:
        texts = [llm.tokenizer.encode(json.loads(line)["text"]) for line in lines]
    texts = [ids for ids in texts if len(ids) > LONGEST]

    def piece(length: int) -> list[int]:
        text = draw.choice(texts)
        begin = draw.randrange(len(text) - length)
        return list(text[begin : begin + length])

    stems = [piece(length) for length in STEMS]
    made = []
    for _ in range(NUM_PROMPTS):
        stem = draw.choice(stems) if draw.random() < 0.4 else []
        longest = draw.choice((SHORTEST, 24, 80, LONGEST))
        made.append(stem + piece(draw.randint(SHORTEST, min(longest, LONGEST - len(stem)))))
    return made


def requests(configuration: Configuration) -> list[tuple[int, str, SamplingParams]]:
    """Number of the prompt, kind and settings of each request."""
    made = []
    for number in range(NUM_PROMPTS):
        turn, place = divmod(number, len(KINDS))
        kind, settings = list(KINDS.items())[place]
        given = {"seed": 1000 + number, "max_tokens": 20 + number % 9, "logprobs": 2 if turn % 4 < 2 else None, **settings}
        if kind == "acceptance" and configuration.keeps_acceptance:
            given["acceptance"] = ACCEPTANCES[turn % 2]
        if configuration.exits and kind == "beams":
            continue
        made.append((number, kind, with_known_names(SamplingParams, {**given, **configuration.exits})))
    return made


def answer(llm: LLM, configuration: Configuration, token_ids: list[list[int]]) -> list[dict[str, Any]]:
    llm.reset_prefix_cache()
    asked = requests(configuration)
    given = [{"prompt_token_ids": token_ids[number]} for number, _, _ in asked]
    outputs = llm.generate(given, [params for _, _, params in asked], use_tqdm=False)
    return [record(number, kind, output) for (number, kind, _), output in zip(asked, outputs, strict=True)]


def record(number: int, kind: str, output: RequestOutput) -> dict[str, Any]:
    answers = [plain(answer) for answer in output.outputs]
    return {"prompt": number, "kind": kind, "seed": output.seed, "error": output.error, "answers": answers}


def plain(answer: CompletionOutput) -> dict[str, Any]:
    """As JSON has it, every number bit for bit."""
    logprobs = None
    if answer.logprobs is not None:
        logprobs = [
            [each.token_id, each.logprob.hex(), each.rank, [[token_id, logprob.hex()] for token_id, logprob in each.top]]
            for each in answer.logprobs
        ]
    return {
        "token_ids": list(answer.token_ids),
        "logprobs": logprobs,
        "cumulative_logprob": None if answer.cumulative_logprob is None else answer.cumulative_logprob.hex(),
        "score": None if answer.score is None else answer.score.hex(),
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "exit_layers": list(answer.exit_layers),
    }


def dump() -> dict[str, Any]:
    planned = list(configurations())
    sizes = [len(requests(configuration)) for configuration in planned]
    begin = time.perf_counter()
    llm, options = engine(planned[0].options), planned[0].options
    token_ids = prompts(llm)
    answers = {}
    for place, configuration in enumerate(planned):
        left = (time.perf_counter() - begin) * sum(sizes[place:]) / sum(sizes[:place]) if place else None
        about = "" if left is None else f", about {left:.0f} s left"
        print(f"configuration {place + 1} of {len(planned)}: {configuration.name}{about}", file=sys.stderr, flush=True)
        if configuration.options != options:
            del llm  # before the next one takes memory
            llm, options = engine(configuration.options), configuration.options
        answers[configuration.name] = answer(llm, configuration, token_ids)
    print(f"{len(planned)} configurations in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return {"hasten": str(Path(hasten.__file__).parent), "prompts": token_ids, "configurations": answers}


def write(path: Path, result: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def differences(first: Any, second: Any, where: str) -> Iterator[str]:
    """Every place in which two values of JSON differ."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        for key in first:
            yield from differences(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from differences(one, other, f"{where}[{place}]")
    elif isinstance(first, list) and isinstance(second, list):
        both = (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
        begin = next(both, min(len(first), len(second)))
        yield f"{where}: {len(first)} and {len(second)} items, which differ from item {begin} on"
    elif first != second:
        yield f"{where}: {first!r} and {second!r}"


def first_differences(name: str, first: list[dict[str, Any]] | None, second: list[dict[str, Any]] | None) -> list[str]:
    """The first one of each request, of some requests."""
    if first is None or second is None:
        return [f"{name}: only in the {'second' if first is None else 'first'} dump"]
    if len(first) != len(second):
        return [f"{name}: {len(first)} and {len(second)} requests"]
    found = []
    for one, other in zip(first, second, strict=True):
        where = f"{name}: prompt {one['prompt']} ({one['kind']})"
        found += [next(differences(one, other, where))] if one != other else []
    return found if len(found) <= SHOWN else [*found[:SHOWN], f"{name}: {len(found)} requests differ in all"]


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether all is equal. Prints a table, then the first differences."""
    print(f"first: {first['hasten']}\nsecond: {second['hasten']}\n")
    found = [] if first["prompts"] == second["prompts"] else ["the prompts differ: other held-out text, or another tokenizer"]
    ours, theirs = first["configurations"], second["configurations"]
    rows = []
    for name in {**ours, **theirs}:
        different = first_differences(name, ours.get(name), theirs.get(name))
        found += different
        records = ours.get(name) or theirs[name]
        tokens = sum(len(each["token_ids"]) for record in records for each in record["answers"])
        rows.append((name, len(records), tokens, "differs" if different else "equal"))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows), "differs" if found else "equal"))
    print("| configuration | requests | tokens | outputs |\n| --- | --- | --- | --- |")
    print("\n".join(f"| {name} | {count:,} | {tokens:,} | {verdict} |" for name, count, tokens, verdict in rows))
    if found:
        print("\n" + "\n".join(found))
    return not found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    dumping = commands.add_parser("dump", help="write the outputs of this code")
    dumping.add_argument("out", type=Path)
    comparing = commands.add_parser("compare", help="exit with 0 if two dumps are equal bit for bit, else with 1")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.command == "compare":
        first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (options.first, options.second))
        sys.exit(0 if compare(first, second) else 1)
    if not options.out.parent.is_dir():
        sys.exit(f"{options.out.parent} is not a folder")  # told now, and not after minutes
    try:
        write(options.out, dump())
    except KeyboardInterrupt:
        print(f"interrupted: {options.out} is not written", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
