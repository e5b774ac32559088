"""``GrammarCompiler``: compiled grammars of one vocabulary, vetted in a process that can be killed.

A schema or a grammar comes from a stranger. It is first compiled in a small process with limits of time and memory, and what
passes there is compiled again for the vocabulary, under llguidance's own limits: these count work, so that a mask cannot take
longer than some tens of milliseconds.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from llguidance import LLMatcher, LLTokenizer

from hasten.core.errors import InvalidRequest, clip, printable
from hasten.core.killable_program import KillableProgram, ProgramEnded
from hasten.core.structured_outputs import StructuredOutputs
from hasten.sampling.guides import grammar_program
from hasten.sampling.guides.grammar_text import LIMITS, grammar_fault

SECONDS = 2.0  # to vet a grammar
MAX_GRAMMARS = 128  # that are kept
_MAX_ANSWER = 64 << 20  # bytes: a schema of many characters that JSON escapes
_LIMITS = f"{SECONDS:g} s and {grammar_program.PROGRAM_LIMITS.memory >> 20} MiB"


class _Compiled(NamedTuple):
    grammar: str  # in the words of llguidance
    matcher: LLMatcher  # in its initial state


class GrammarCompiler:
    """Makes the matchers of grammars. Threads may share it.

    A grammar is compiled once as long as a request holds its ``StructuredOutputs``. So the engine's thread, which asks for what
    another thread has compiled, does not wait for it.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """``tokenizer_json``: of the library ``tokenizers``. ``vocab_size``: logits of a row."""
        self._tokenizer_json, self._vocab_size, self._eos_token_ids = tokenizer_json, vocab_size, list(eos_token_ids)
        self._program = KillableProgram(grammar_program.__name__, "tries grammars")
        self._tokenizer: LLTokenizer | None = None
        self._grammars: OrderedDict[StructuredOutputs, _Compiled] = OrderedDict()  # the last used last
        self._held: WeakKeyDictionary[StructuredOutputs, _Compiled] = WeakKeyDictionary()  # however many requests wait
        self._lock = threading.Lock()

    def has(self, form: StructuredOutputs) -> bool:
        """Return whether ``compile`` takes no time."""
        return form in self._grammars or form in self._held

    def compile(self, form: StructuredOutputs) -> LLMatcher:
        """Return a new matcher in its initial state.

        Raises ``InvalidRequest`` for a grammar that is wrong or too large.
        """
        with self._lock:
            found = self._find(form)
            if found is not None:
                return found.matcher.deep_copy()
        return self._compile(form, self._vet(form))

    def renew(self, form: StructuredOutputs) -> LLMatcher:
        """Return a new matcher that shares nothing with those before; later ones share its lexer."""
        with self._lock:
            found = self._find(form)
        return self._compile(form, self._vet(form) if found is None else found.grammar)

    def _find(self, form: StructuredOutputs) -> _Compiled | None:
        found = self._grammars.get(form) or self._held.get(form)
        if found is not None:
            self._keep(form, found)
        return found

    def _compile(self, form: StructuredOutputs, grammar: str) -> LLMatcher:
        with self._lock:
            tokenizer = self._tokenizer = self._tokenizer or self._load_tokenizer()
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
        if fault := grammar_fault(matcher):
            raise _wrong(form, fault)
        with self._lock:
            self._keep(form, _Compiled(grammar, matcher))
        return matcher.deep_copy()

    def _keep(self, form: StructuredOutputs, compiled: _Compiled) -> None:
        self._held[form] = self._grammars[form] = compiled
        self._grammars.move_to_end(form)
        if len(self._grammars) > MAX_GRAMMARS:
            self._grammars.popitem(last=False)

    def _vet(self, form: StructuredOutputs) -> str:
        """Return the grammar in the words of llguidance."""
        try:
            answer = self._program.ask(dataclasses.asdict(form), SECONDS, _MAX_ANSWER)
        except (TimeoutError, ProgramEnded) as error:
            got = f"more than {SECONDS:g} s" if isinstance(error, TimeoutError) else "its process ended"
            raise InvalidRequest(
                f"the {form.form} of structured_outputs takes too long or too much memory to compile",
                got=got,
                allowed=_LIMITS,
                remedy="Simplify it",
            ) from None
        if "fault" in answer:
            raise _wrong(form, answer["fault"])
        return str(answer["grammar"])

    def _load_tokenizer(self) -> LLTokenizer:
        try:
            return LLTokenizer(self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._eos_token_ids)
        except BaseException as error:  # also the panics of a library in Rust
            if isinstance(error, KeyboardInterrupt):
                raise
            raise InvalidRequest(
                "structured_outputs does not know this checkpoint's kind of tokenizer", got=clip(printable(error), 200)
            ) from None


def _wrong(form: StructuredOutputs, fault: str) -> InvalidRequest:
    return InvalidRequest(
        f"the {form.form} of structured_outputs cannot be used", got=clip(printable(fault), 300).rstrip("."), remedy="Correct it"
    )
