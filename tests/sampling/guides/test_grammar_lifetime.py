"""How long a compiled grammar is kept, and what its users do to each other."""

from __future__ import annotations

import gc
import random
from functools import partial
from pathlib import Path

import pytest
from llguidance import LLParserLimits

from hasten.core.errors import HastenError
from hasten.core.structured_outputs import StructuredOutputs
from hasten.sampling.guides import grammar_compiler
from hasten.sampling.guides.grammar_compiler import GrammarCompiler
from hasten.sampling.guides.grammar_guide import GrammarGuide

TOKENIZER = Path(__file__).parents[3] / "src" / "hasten" / "demo" / "model" / "tokenizer.json"


def test_a_grammar_that_a_request_holds_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vetted: list[str | None] = []
    vet = GrammarCompiler._vet

    def count(self: GrammarCompiler, form: StructuredOutputs) -> str:
        vetted.append(form.regex)
        return vet(self, form)

    monkeypatch.setattr(grammar_compiler, "MAX_GRAMMARS", 2)
    monkeypatch.setattr(GrammarCompiler, "_vet", count)
    compiler = GrammarCompiler(TOKENIZER.read_text(), 8192, (0, 2))
    forms = [StructuredOutputs(regex=f"[0-9]{{{i}}}") for i in range(1, 6)]
    for form in [*forms, *forms]:
        compiler.compile(form)
    assert vetted == [form.regex for form in forms]
    del form, forms
    gc.collect()
    for i in range(1, 6):
        compiler.compile(StructuredOutputs(regex=f"[0-9]{{{i}}}"))
    assert vetted[5:] == [f"[0-9]{{{i}}}" for i in range(1, 6)], "an unused one is forgotten, and two are not enough for a round"


def test_outputs_of_other_requests_use_up_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lexer of this grammar has a state for each text of its last 15 letters, and copies of a matcher share the states."""
    monkeypatch.setattr(grammar_compiler, "LIMITS", LLParserLimits(max_lexer_states=1500, verbose_errors=False))
    compiler, form = GrammarCompiler(TOKENIZER.read_text(), 8192, (0, 2)), StructuredOutputs(regex="(a|b)*a(a|b){14}c")
    tokens = (80, 81)  # a, b
    own = GrammarGuide(compiler.compile(form), 8192, (0, 2), 1, partial(compiler.renew, form))
    early = random.Random(1).choices(tokens, k=40)
    assert own.num_allowed([], early) == 40
    other = GrammarGuide(compiler.compile(form), 8192, (0, 2), 1, partial(compiler.renew, form))
    with pytest.raises(HastenError, match="too many states"):
        other.mask(random.Random(2).choices(tokens, k=4000))
    assert own.num_allowed(early[:20], early[20:]) == 20
    assert not own.is_complete(early)
    assert own.mask(early) is not None
    later = GrammarGuide(compiler.compile(form), 8192, (0, 2), 1)
    assert later.num_allowed([], early) == 40


def test_a_draft_of_unknown_tokens_does_not_end_its_output() -> None:
    compiler, form = GrammarCompiler(TOKENIZER.read_text(), 8192, (0, 2)), StructuredOutputs(regex="[ab]{5}")
    guide = GrammarGuide(compiler.compile(form), 8192, (0, 2), 1, partial(compiler.renew, form))
    assert guide.num_allowed([80], [9000]) == 0
    assert guide.num_allowed([80], [81, 9000, 81]) == 1
    assert guide.num_allowed([80], [81, 81]) == 2


def test_a_forced_text_that_is_too_long_ends_its_request_at_once() -> None:
    compiler, form = GrammarCompiler(TOKENIZER.read_text(), 8192, (0, 2)), StructuredOutputs(choice=("a b c " * 8_000,))
    guide = GrammarGuide(compiler.compile(form), 8192, (0, 2), 1, partial(compiler.renew, form))
    with pytest.raises(HastenError, match=r"a forced text of \d+ tokens.*up to 4096"):
        guide.forced_tokens([])
    assert guide.failure is not None
