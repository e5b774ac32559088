"""A program: what ``LLM`` answers to the questions of one JSON object on standard input.

``pairs``: contexts and continuations, cut into tokens as lm-eval does; the answer has their log-probabilities, and whether each
token is the most likely one. ``prompts`` and ``messages``: the answer has greedy texts of ``max_tokens``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from hasten import LLM, SamplingParams


def score(llm: LLM, context: str, continuation: str) -> tuple[float, bool]:
    num_spaces = len(context) - len(context.rstrip())
    if num_spaces:
        context, continuation = context[:-num_spaces], context[-num_spaces:] + continuation
    whole = llm.tokenizer.encode(context + continuation, add_special_tokens=False)
    before = llm.tokenizer.encode(context, add_special_tokens=False)
    before, after = whole[: len(before)], whole[len(before) :]
    (found,) = llm.score({"prompt_token_ids": before}, [{"token_ids": after}])
    is_greedy = all(
        llm.generate([{"prompt_token_ids": whole[:i]}], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)[0]
        .outputs[0]
        .token_ids[0]
        == whole[i]
        for i in range(len(before), len(whole))
    )
    return found.total, is_greedy


def main() -> None:
    asked: dict[str, Any] = json.load(sys.stdin)
    with LLM("demo", **asked["options"]) as llm:
        params = SamplingParams(temperature=0, max_tokens=asked.get("max_tokens", 16), stop=tuple(asked.get("stop", ())))
        prompts = [
            {"prompt_token_ids": llm.tokenizer.encode(text, add_special_tokens=False)} for text in asked.get("raw_prompts", [])
        ]
        answers = {
            "scores": [score(llm, *pair) for pair in asked.get("pairs", [])],
            "texts": [
                llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].text
                for prompt in [*asked.get("prompts", []), *prompts]
            ],
            "answers": [llm.chat(messages, params, use_tqdm=False)[0].outputs[0].text for messages in asked.get("messages", [])],
        }
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
