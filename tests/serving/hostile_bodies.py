"""Requests that have ended or corrupted engines of the field, with what each must be answered here."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.serving.watched_server import CONTEXT

RIGHT = ""  # ``named`` of a request that has an answer
LONG = "x" * 100_000
VOCABULARY = 8192  # of the demo model
USER = {"role": "user", "content": "Hi"}
Json = Any


class Hostile(NamedTuple):
    path: str
    body: bytes
    named: str  # what the error names; ``RIGHT``: there is none


def sent(path: str, named: str, body: Json) -> Hostile:
    """``body``: what is sent as JSON, or a text that is sent as it is."""
    return Hostile(path, body.encode("utf-8", "surrogatepass") if isinstance(body, str) else json.dumps(body).encode(), named)


def completion(named: str, **fields: Json) -> Hostile:
    return sent("/v1/completions", named, {"prompt": "def f(a):", "max_tokens": 4, **fields})


def chat(named: str, **fields: Json) -> Hostile:
    return sent("/v1/chat/completions", named, {"messages": [USER], "max_tokens": 4, **fields})


def message(named: str, **fields: Json) -> Hostile:
    return sent("/v1/messages", named, {"model": "demo", "messages": [USER], "max_tokens": 4, **fields})


def generate(named: str, **parameters: Json) -> Hostile:
    return sent("/generate", named, {"inputs": "def f(a):", "parameters": {"max_new_tokens": 4, **parameters}})


def text(named: str, fields: str) -> Hostile:
    """``fields``: more of the body, as JSON text."""
    return sent("/v1/completions", named, f'{{"prompt": "a", "max_tokens": 1, {fields}}}')


def formed(named: str, schema: Json) -> Hostile:
    """Return a chat whose answer has a JSON schema."""
    return chat(named, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})


def guided(named: str, **form: Json) -> Hostile:
    return completion(named, structured_outputs=form)


def tool(named: str, parameters: Json, name: str = "f") -> Hostile:
    function = {"name": name, "parameters": parameters}
    return chat(named, tools=[{"type": "function", "function": function}], tool_choice="required")


def said(named: str, *messages: Json, **fields: Json) -> Hostile:
    return chat(named, messages=list(messages), **fields)


def called(arguments: Json) -> Json:
    """Return a message of the assistant with a call of a tool."""
    return {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}]}


def nested(depth: int) -> Json:
    schema: Json = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
LIST = {"type": "object", "properties": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, "required": ["n"]}
ENDLESS = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"], "additionalProperties": False}
DOUBLED = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(24)} | {"a24": {"type": "string"}}
PRODUCT = {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(4)]} for i in range(12)]}
ROOT = {"$ref": "#/$defs/n"}

COUNTS = {
    "n of vLLM's limit": completion("n=16384", n=16_384),
    "n of 64 bits": completion("n", n=2**63),
    "n of zero": completion("n", n=0),
    "n of a chat": chat("n", n=10**9),
    "best_of": completion("best_of", best_of=10**9),
    "best_of of TGI": generate("best_of", best_of=10**9),
    "beam_width": completion("beam_width", use_beam_search=True, beam_width=10**6),
    "top_logprobs": chat("top_logprobs", logprobs=True, top_logprobs=10**6),
    "negative top_logprobs": chat("top_logprobs", logprobs=True, top_logprobs=-1),
    "logprobs": completion("logprobs", logprobs=10**6),
    "prompt_logprobs": completion("prompt_logprobs", prompt_logprobs=VOCABULARY),
    "top_n_tokens": generate("top_n_tokens", top_n_tokens=10**6),
    "max_tokens": completion("max_tokens", max_tokens=10**12),
    "negative max_tokens": completion("max_tokens", max_tokens=-1),
    "max_new_tokens": generate("max_new_tokens", max_new_tokens=10**9),
    "Anthropic's max_tokens": message("max_tokens", max_tokens=2**63),
    "min_tokens above max_tokens": completion("min_tokens", min_tokens=10),
    "min_tokens without max_tokens": completion("min_tokens", min_tokens=10**9, max_tokens=None),
    "top_k": completion("top_k", top_k=2**63),
    "seed": completion("seed", seed=2**63),
    "negative seed": completion("seed", seed=-(2**63)),
    "priority": completion("priority", priority=2**70),
    "no_repeat_ngram_size": completion("no_repeat_ngram_size", no_repeat_ngram_size=-1),
    "thinking_token_budget": completion("thinking_token_budget", thinking_token_budget=-5),
    "budget_tokens": message("budget", thinking={"type": "enabled", "budget_tokens": 2048}),
    "exit_layer": completion("exit_layer", exit_rule="fixed", exit_layer=-1),
    "exit_rule": completion("exit_rule", exit_rule="x"),
    "acceptance": completion("acceptance", acceptance="x"),
    "too many prompts": completion("prompt", prompt=["a"] * 1000),
    "too many messages": said("messages", *[USER] * 1025),
    "too many continuations": sent("/score", "continuations", {"prompt": "a", "continuations": ["b"] * 100}),
    "too many digits": text("number", f'"n": {"9" * 10_000}'),
    "a stream of eight": chat(RIGHT, stream=True, n=8, logprobs=True, top_logprobs=20),
    "a stream of logprobs": completion(RIGHT, stream=True, n=3, logprobs=5, echo=True),
}
TOKENS = {
    "bias outside the vocabulary": completion("logit_bias", logit_bias={"999999999": 1}),
    "bias of the first id outside": completion("logit_bias", logit_bias={str(VOCABULARY): 1}),
    "bias in a stream": completion("logit_bias", logit_bias={str(VOCABULARY): 1}, stream=True),
    "bias of a negative id": completion("logit_bias", logit_bias={"-1": 1}),
    "bias of a word": completion("logit_bias", logit_bias={"a": 1}),
    "bias of a fraction": completion("logit_bias", logit_bias={"1.5": 1}),
    "bias of endless digits": completion("logit_bias", logit_bias={"9" * 5000: 1}),
    "bias out of range": completion("logit_bias", logit_bias={"1": 200}),
    "bias of true": completion("logit_bias", logit_bias={"1": True}),
    "bias of infinity": text("number", '"logit_bias": {"1": 1e999}'),
    "biases without end": completion("logit_bias", logit_bias={str(i): 1 for i in range(2000)}),
    "bad words without end": completion("bad_words", bad_words=["a"] * 5000),
    "a long bad word": completion("bad_words", bad_words=[LONG]),
    "an empty bad word": completion("bad_words", bad_words=[""]),
    "bad word outside the vocabulary": completion("bad_words_ids", bad_words_ids=[[VOCABULARY]]),
    "bad word of a negative id": completion("bad_words_ids", bad_words_ids=[[-1]]),
    "bad word without ids": completion("bad_words_ids", bad_words_ids=[[]]),
    "no allowed id": completion("allowed_token_ids", allowed_token_ids=[]),
    "allowed id outside": completion("allowed_token_ids", allowed_token_ids=[10**9]),
    "one allowed id": completion(RIGHT, allowed_token_ids=[5, 5]),
    "stop id outside": completion("stop_token_ids", stop_token_ids=[10**9]),
    "prompt at the end of the vocabulary": completion(RIGHT, prompt=[0, VOCABULARY - 1]),
    "prompt after the vocabulary": completion("prompt", prompt=[VOCABULARY]),
    "prompt of a negative id": completion("prompt", prompt=[-1]),
    "prompt of 64 bits": completion("prompt", prompt=[2**64]),
    "prompt of true": completion("prompt", prompt=[True]),
    "prompt of fractions": completion("prompt", prompt=[1.5]),
    "prompt without ids": completion("prompt", prompt=[]),
    "prompts without ids": completion("prompt", prompt=[[]]),
    "prompts of both kinds": completion("prompt", prompt=["a", [1]]),
    "prompt of the context": completion("prompt", prompt=[5] * CONTEXT),
    "prompt that leaves one token": completion(RIGHT, prompt=[5] * (CONTEXT - 1), max_tokens=1),
    "prompt that leaves too few": completion("max_tokens", prompt=[5] * (CONTEXT - 1), max_tokens=2),
    "prompt of half a million ids": completion("prompt", prompt=[5] * 500_000),
    "detokenize outside": sent("/detokenize", "tokens", {"tokens": [VOCABULARY]}),
    "detokenize a lot": sent("/detokenize", "tokens", {"tokens": [5] * 1000}),
    "score outside": sent("/score", "prompt", {"prompt": [VOCABULARY], "continuations": ["a"]}),
    "score beyond the context": sent("/score", "continuations", {"prompt": "a", "continuations": ["b " * 300]}),
    "choose nothing": sent("/choose", "choices", {"prompt": "a", "choices": []}),
}
FORMS = {
    "deep schema": formed("levels", nested(28)),
    "deeper schema": formed("nested", nested(60)),
    "huge enum": formed("65536", {"enum": [f"v{i}" for i in range(50_000)]}),
    "many properties": formed("65536", {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}}),
    "alternatives doubled 24 times": formed(RIGHT, {"$ref": "#/$defs/a0", "$defs": DOUBLED}),
    "product of alternatives": formed("json", PRODUCT),
    "references in a circle": formed("json", LOOP),
    "recursive schema": formed(RIGHT, ROOT | {"$defs": {"n": LIST}}),
    "endless schema": formed(RIGHT, ROOT | {"$defs": {"n": ENDLESS}}),
    "reference to a server": formed("json", {"$ref": "http://127.0.0.1:1/x.json"}),
    "reference to a file": formed("json", {"$ref": "file:///etc/passwd"}),
    "huge minLength": formed(RIGHT, {"type": "string", "minLength": 10**9}),
    "huge minItems": formed(RIGHT, {"type": "array", "items": {"type": "string"}, "minItems": 10**8}),
    "tiny multipleOf": formed("json", {"type": "integer", "multipleOf": 1e-300}),
    "huge range": formed("json", {"type": "integer", "minimum": -(10**30), "maximum": 10**30}),
    "no instance": formed("json", {"not": {}}),
    "type that is none": formed("json", {"type": ["string", 5]}),
    "pattern that is none": formed("json", {"type": "string", "pattern": "(["}),
    "pattern of nested repeats": formed(RIGHT, {"type": "string", "pattern": "((a+)+)+$"}),
    "text that is no schema": guided("json", json="{"),
    "false": guided("json", json=False),
    "two forms": guided("structured_outputs", json={}, regex="a"),
    "no form": guided("structured_outputs"),
    "repeats of repeats": guided("structured_outputs", regex="(a{1000}){1000}"),
    "alternatives of one letter": guided(RIGHT, regex="(a|a)*" * 200),
    "nested groups": guided("regex", regex="(" * 2000 + "a" + ")" * 2000),
    "open group": guided("regex", regex="("),
    "back reference": guided("regex", regex=r"(a)\1"),
    "look ahead": guided("regex", regex="(?=a)b"),
    "impossible regex": guided("regex", regex=r"[^\s\S]"),
    "long regex": guided("regex", regex="a" * 70_000),
    "no choice": guided("structured_outputs", choice=[]),
    "empty choice": guided("choice", choice=[""]),
    "many choices": guided("choice", choice=[str(i) for i in range(5000)]),
    "grammar of nothing": guided(RIGHT, grammar="root ::= "),
    "grammar without a root": guided("root", grammar='a ::= "b"'),
    "grammar of itself": guided("grammar", grammar="root ::= root"),
    "left recursion": guided(RIGHT, grammar='root ::= root "a" | "b"'),
    "grammar that doubles": guided(
        "grammar", grammar="\n".join([f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)] + ['r40 ::= "a"'])
    ),
    "nested grammar": guided("grammar", grammar="root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
    "TGI's regex": generate("structured_outputs", grammar={"type": "regex", "value": "(a{1000}){1000}"}),
    "TGI's schema": generate("json", grammar={"type": "json", "value": LOOP}),
    "TGI's number": generate("grammar", grammar={"type": "regex", "value": 5}),
    "Anthropic's schema": message("json", output_config={"format": {"type": "json_schema", "schema": LOOP}}),
    "tool with a circle": tool("structured_outputs", LOOP),
    "recursive tool": tool(RIGHT, ROOT | {"$defs": {"n": LIST}}),
    "endless tool": tool("structured_outputs", ROOT | {"$defs": {"n": ENDLESS}}),
    "large tool": tool("tool f", {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(4000)}}),
    "tool of a list": tool("tool f", []),
    "name of a path": tool("tools", {}, name="../../x"),
    "long name": tool("tools", {}, name=LONG),
    "too many tools": chat("tools", tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(3000)]),
    "tools of one name": chat("tools", tools=[{"type": "function", "function": {"name": "f"}}] * 2),
    "an object as tools": chat("tools", tools={}),
    "false as tools": chat("tools", tools=False),
    "null as a tool": chat("tools", tools=[None]),
    "choice of no tool": chat("tool_choice", tool_choice="required"),
    "Anthropic's tool with a circle": message(
        "structured_outputs", tools=[{"name": "f", "input_schema": LOOP}], tool_choice={"type": "any"}
    ),
    "Anthropic's endless tool": message(RIGHT, tools=[{"name": "f", "input_schema": ROOT | {"$defs": {"n": ENDLESS}}}]),
    "Anthropic's other tool": message(
        "tool_choice", tools=[{"name": "f", "input_schema": {}}], tool_choice={"type": "tool", "name": "g"}
    ),
}
