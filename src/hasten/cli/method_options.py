"""The options of the methods of ``hasten prompt optimize``, as command options.

The methods are not imported until one is chosen, because some of them need heavy libraries. Types, limits and defaults stay in the
methods: this module has one flag and one help text for all methods that have a field of the same name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hasten.cli.options import OptionGroup, OptionValues
from hasten.core.errors import InvalidOption


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """The fields of all methods. None: not given, so the method's own default holds."""

    shots: int | None = None
    length: int | None = None
    virtual_tokens: int | None = None
    init_text: str | None = None
    steps: int | None = None
    learning_rate: float | None = None
    batch: int | None = None
    top_k: int | None = None
    num_candidates: int | None = None
    rounds: int | None = None
    proposer: str | None = None
    proposer_model: str | None = None
    max_instruction_tokens: int | None = None
    max_tokens_spent: int | None = None


HELP = {
    "shots": "demonstrations: train items that a prompt shows.",
    "length": "pez, gcg: tokens of the prompt that is found.",
    "virtual_tokens": "soft_prompt: number of embeddings; each takes one position of the context.",
    "init_text": "soft_prompt: start from the embeddings of this text.",
    "steps": "pez, gcg, soft_prompt: steps of the optimizer.",
    "learning_rate": "pez, soft_prompt: step size of the embeddings.",
    "batch": "pez, gcg, soft_prompt: train items per step.",
    "top_k": "gcg: replacements per position that the gradient proposes.",
    "num_candidates": "demonstrations, gcg, instructions: prompts that are compared, in all or per step.",
    "rounds": "instructions: how often new instructions are proposed.",
    "proposer": "instructions: URL of an OpenAI-compatible endpoint that proposes them; the model itself if left out.",
    "proposer_model": "instructions: name of the model at that endpoint.",
    "max_instruction_tokens": "instructions: maximum tokens of an instruction.",
    "max_tokens_spent": "instructions: tokens after which no further round begins.",
}
METHOD = OptionGroup("method_options", "Method", MethodOptions, HELP)


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_method_options(method: str, values: OptionValues) -> Any:
    """Return the options of a method, an instance of its ``OPTIONS``.

    Raises ``InvalidOption`` for an unknown method, for an option that it does not have, and for values out of range.
    """
    from hasten.prompts.optimizer import find_optimizer

    source = find_optimizer(method).OPTIONS
    known = _names(source)
    foreign = [name for name in values if name not in known]
    if foreign:
        allowed = ", ".join(map(flag_of, known)) or "no option"
        what = f"{flag_of(foreign[0])} has no meaning for the method {method}"
        raise InvalidOption(what, allowed=allowed, remedy=f"It is an option of {', '.join(_owners(foreign[0])) or 'no method'}")
    return source(**values)


def _owners(name: str) -> list[str]:
    from hasten.prompts.optimizer import find_optimizer, optimizer_names

    return [method for method in optimizer_names() if name in _names(find_optimizer(method).OPTIONS)]


def _names(source: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(source)]
