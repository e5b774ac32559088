"""How long a compiled grammar is kept: while a request holds its form, and among the last ones used."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from hasten.core.structured_outputs import StructuredOutputs
from hasten.sampling.guides import grammar_compiler
from hasten.sampling.guides.grammar_compiler import GrammarCompiler

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
