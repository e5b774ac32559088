"""Grammars of strangers: each is compiled or refused in time, and a process that breaks is replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher
from tests.sampling.guides.languages import EOS, LANGUAGES, TOKENIZER, VOCAB_SIZE, bits

import hasten
from hasten.core.errors import MAX_MESSAGE, HastenError, InvalidRequest
from hasten.core.structured_outputs import StructuredOutputs
from hasten.sampling.guides import grammar_compiler, grammar_program
from hasten.sampling.guides.grammar_compiler import MAX_GRAMMARS, SECONDS, GrammarCompiler
from hasten.sampling.guides.grammar_guide import GrammarGuide
from hasten.sampling.guides.grammar_program import GrammarProgram
from hasten.text.tokenizer import TextTokenizer

GOOD = LANGUAGES["counted"].form
OBJECTS = '{"type":"object","properties":{"a":'


def chain(rule: str, last: str, num_rules: int, start: str) -> str:
    """Return a grammar in which each rule is made of the next one. ``rule``: with {i} and {j} for numbers."""
    return "\n".join([start, *(rule.format(i=i, j=i + 1) for i in range(num_rules)), last.format(i=num_rules)])


HOSTILE: dict[str, Callable[[], StructuredOutputs]] = {
    "nested 30,000 deep": lambda: StructuredOutputs(json='{"items":' * 30_000 + "true" + "}" * 30_000),
    "nested within 64 KiB": lambda: StructuredOutputs(json=OBJECTS * 1_600 + "true" + "}}" * 1_600),
    "100,000 values": lambda: StructuredOutputs(json={"enum": list(range(100_000))}),
    "as many values as fit": lambda: StructuredOutputs(json={"enum": list(range(9_000))}),
    "2,000 properties": lambda: StructuredOutputs(json={"properties": {f"p{i}": {} for i in range(2_000)}}),
    "properties by many patterns": lambda: StructuredOutputs(
        json={"patternProperties": {f"^{c}.*{d}{{9}}": {} for c in "abcdefgh" for d in "abcdefgh"}}
    ),
    "a schema of itself": lambda: StructuredOutputs(json={"$ref": "#"}),
    "references that double": lambda: StructuredOutputs(
        json={
            "$ref": "#/$defs/0",
            "$defs": {str(i): {"properties": {key: {"$ref": f"#/$defs/{i + 1}"} for key in "ab"}} for i in range(99)}
            | {"99": {}},
        }
    ),
    "references in a circle": lambda: StructuredOutputs(json={"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "a reference to the network": lambda: StructuredOutputs(json={"$ref": "http://127.0.0.1:9/a.json"}),
    "a reference to a file": lambda: StructuredOutputs(json={"$ref": "file:///etc/passwd"}),
    "products of alternatives": lambda: StructuredOutputs(
        json={"allOf": [{"anyOf": [{"properties": {f"{i}_{j}": {}}} for j in range(4)]} for i in range(14)]}
    ),
    "a common multiple": lambda: StructuredOutputs(
        json={"allOf": [{"type": "integer", "multipleOf": prime} for prime in (7, 11, 13, 17, 19, 23)]}
    ),
    "a million items": lambda: StructuredOutputs(json={"type": "array", "minItems": 10**6, "items": {"type": "object"}}),
    "a billion characters": lambda: StructuredOutputs(json={"type": "string", "minLength": 10**9}),
    "more than any number": lambda: StructuredOutputs(json={"type": "string", "minLength": 10**30}),
    "a wide range of numbers": lambda: StructuredOutputs(json={"type": "number", "minimum": -1e308, "maximum": 1e308}),
    "intersected patterns": lambda: StructuredOutputs(
        json={"allOf": [{"type": "string", "pattern": f"(a|b)*{c}(a|b){{20}}"} for c in "abab"]}
    ),
    "a pattern that backtracks": lambda: StructuredOutputs(json={"type": "string", "pattern": "^((a+)+)+$"}),
    "backtracking": lambda: StructuredOutputs(regex="((a|a)*)*b|(a|aa)+$"),
    "exponential states": lambda: StructuredOutputs(regex="(a|b)*a(a|b){60}"),
    "a million repetitions": lambda: StructuredOutputs(regex="a{1000000}"),
    "a billion repetitions": lambda: StructuredOutputs(regex="(a{1000}){1000000}"),
    "more repetitions than a number holds": lambda: StructuredOutputs(regex="a{99999999999999999999}"),
    "30,000 brackets": lambda: StructuredOutputs(regex="(" * 30_000 + "a" + ")" * 30_000),
    "60,000 stars": lambda: StructuredOutputs(regex="a" + "*" * 60_000),
    "large classes": lambda: StructuredOutputs(regex=r"(\p{L}|\w|[^\x00-\x{FFFF}]){0,99999}"),
    "9,000 alternatives": lambda: StructuredOutputs(regex="|".join(f"x{i}y" for i in range(9_000))),
    "nothing": lambda: StructuredOutputs(regex="[a&&b]"),
    "look-around": lambda: StructuredOutputs(regex="(?=a)b"),
    "left recursion": lambda: StructuredOutputs(grammar='start: start "a" | start | '),
    "a rule of itself alone": lambda: StructuredOutputs(grammar="start: start"),
    "a terminal of itself": lambda: StructuredOutputs(grammar="start: A\nA: A"),
    "ambiguity": lambda: StructuredOutputs(grammar='start: s\ns: s s s | s s | "a" | '),
    "rules that double": lambda: StructuredOutputs(grammar=chain("r{i}: r{j} r{j}", 'r{i}: "a"', 60, "start: r0")),
    "rules that branch": lambda: StructuredOutputs(grammar=chain("r{i}: r{j} | r{j} r{j}", 'r{i}: "a"', 60, "start: r0")),
    "terminals that double": lambda: StructuredOutputs(grammar=chain("T{i}: T{j} T{j}", 'T{i}: "a"', 40, "start: T0")),
    "GBNF that doubles": lambda: StructuredOutputs(grammar=chain("r{i} ::= r{j} r{j}", 'r{i} ::= "a"', 60, "root ::= r0")),
    "GBNF that repeats": lambda: StructuredOutputs(grammar='root ::= a{1000000}\na ::= [a-z]{1000000}'),
    "GBNF in brackets": lambda: StructuredOutputs(grammar="root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "Lark in brackets": lambda: StructuredOutputs(grammar="start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "Lark that repeats": lambda: StructuredOutputs(grammar='start: a~1000000\na: "x"~1000000'),
    "an intersection": lambda: StructuredOutputs(grammar="start: A\nA: /.*a.{15}/ & /.*b.{14}/ & /.*c.{13}/ & ~/.*d.{12}/"),
    "an import of a file": lambda: StructuredOutputs(grammar='%import "/etc/passwd"\nstart: passwd'),
    "no grammar": lambda: StructuredOutputs(grammar="\x00ÿ\n\n\t{{"),
    "an unknown rule": lambda: StructuredOutputs(grammar="start: nothing"),
    "4,096 choices": lambda: StructuredOutputs(choice=tuple(f"choice {i}" for i in range(4_096))),
    "choices that begin each other": lambda: StructuredOutputs(choice=tuple("a" * n for n in range(1, 340))),
    "a long choice": lambda: StructuredOutputs(choice=("a b c " * 10_000,)),
    "choices of odd characters": lambda: StructuredOutputs(choice=("\0", '"\\', "\n", "\u2028", "\U0010ffff", "|", " ")),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER.to_str(), VOCAB_SIZE, [EOS])
    compiler.compile(GOOD)
    yield compiler
    compiler._program.close()


def check_it_compiles(compiler: GrammarCompiler) -> None:
    compiler._grammars.pop(GOOD, None)
    compiler._held.pop(GOOD, None)
    assert bits(GrammarGuide(compiler.compile(GOOD), VOCAB_SIZE, [EOS], 1).mask([])) == LANGUAGES["counted"].allowed([])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_compiled_or_refused_in_time(compiler: GrammarCompiler, name: str) -> None:
    start = time.monotonic()
    outcome = compiled(compiler, HOSTILE[name])
    if isinstance(outcome, InvalidRequest):
        assert len(str(outcome)) <= MAX_MESSAGE
        assert str(outcome).isprintable()
        assert "structured_outputs" in str(outcome)
    else:
        fault = ask_for_masks(outcome)
        assert fault is None or "cannot go on" in str(fault)
    assert time.monotonic() - start < 2 * SECONDS + 1  # vetted in SECONDS, then compiled and asked
    check_it_compiles(compiler)


def compiled(compiler: GrammarCompiler, make: Callable[[], StructuredOutputs]) -> LLMatcher | InvalidRequest:
    try:
        return compiler.compile(make())
    except InvalidRequest as error:
        return error


def ask_for_masks(matcher: LLMatcher) -> HastenError | None:
    """Ask for the first masks, which take little time, or return the error of one."""
    guide, tokens = GrammarGuide(matcher, VOCAB_SIZE, [EOS], 1), []
    try:
        for _ in range(20):
            start = time.process_time()
            allowed = guide.forced_tokens(tokens) or sorted(bits(guide.mask(tokens)) - {EOS})
            assert time.process_time() - start < 0.5
            if not allowed:
                break
            tokens.append(allowed[0])
    except HastenError as error:
        return error
    return None


def test_masks_over_a_large_vocabulary_are_bounded() -> None:
    """An ambiguous grammar fails before a mask takes long."""
    tokenizer = TextTokenizer.load(Path(hasten.__file__).parent / "demo" / "model", 8192)
    assert tokenizer is not None
    matcher = GrammarCompiler(tokenizer.to_json(), 8192, [0]).compile(HOSTILE["ambiguity"]())
    longest, error = slowest_mask(GrammarGuide(matcher, 8192, [0], 1), tokenizer.encode_fragment("a")[0])
    assert longest < 0.2
    assert "Too many items" in error


def slowest_mask(guide: GrammarGuide, token_id: int) -> tuple[float, str]:
    """Return the longest processor time of a mask after up to 60 equal tokens, and the error that ends them."""
    longest = 0.0
    for length in range(60):
        begin = time.process_time()
        try:
            guide.mask([token_id] * length)
        except HastenError as error:
            return longest, str(error)
        longest = max(longest, time.process_time() - begin)
    return longest, ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regex": "(a"}, "the regex of structured_outputs cannot be used"),
        ({"json": {"type": "nonsense"}}, "the json of structured_outputs cannot be used"),
        ({"json": {"not": {"type": "string"}}}, "the json of structured_outputs cannot be used"),
        ({"json": "false"}, "the json of structured_outputs cannot be used"),
        ({"grammar": "start: ("}, "the grammar of structured_outputs cannot be used"),
    ],
    ids=str,
)
def test_the_error_names_the_field(compiler: GrammarCompiler, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        compiler.compile(StructuredOutputs(**fields))


def test_what_takes_too_long_is_killed_and_replaced(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    check_it_compiles(compiler)
    pid = compiler._program.pid
    monkeypatch.setattr(grammar_compiler, "SECONDS", 0.2)
    with pytest.raises(InvalidRequest, match=r"takes too long or too much memory.*more than 0.2 s"):
        compiler.compile(HOSTILE["a common multiple"]())
    monkeypatch.undo()
    check_it_compiles(compiler)
    assert compiler._program.pid not in (None, pid)


def test_a_process_that_was_killed_is_replaced(compiler: GrammarCompiler) -> None:
    check_it_compiles(compiler)
    pid = compiler._program.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    check_it_compiles(compiler)


def test_the_last_used_grammars_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, vetted = GrammarCompiler(TOKENIZER.to_str(), VOCAB_SIZE, [EOS]), []
    program = GrammarProgram()
    fields = ("json", "json_object", "regex", "choice", "grammar", "disable_any_whitespace")

    def vet(form: StructuredOutputs) -> str:
        vetted.append(form.choice[0])
        return str(program.answer({name: getattr(form, name) for name in fields})["grammar"])

    monkeypatch.setattr(compiler, "_vet", vet)

    def form(number: int) -> StructuredOutputs:
        """A form that no request holds, which would keep it."""
        return StructuredOutputs(choice=(f"c{number}",))

    for number in range(MAX_GRAMMARS):
        compiler.compile(form(number))
    compiler.compile(form(0))
    assert len(vetted) == MAX_GRAMMARS
    compiler.compile(form(MAX_GRAMMARS))  # takes the place of the second
    compiler.compile(form(0))
    assert len(vetted) == MAX_GRAMMARS + 1
    compiler.compile(form(1))
    assert vetted[MAX_GRAMMARS:] == [f"c{MAX_GRAMMARS}", "c1"]
    assert len(compiler._grammars) == MAX_GRAMMARS


def test_matchers_of_one_grammar_are_apart(compiler: GrammarCompiler) -> None:
    first, second = compiler.compile(GOOD), compiler.compile(GOOD)
    assert first.consume_token(sorted(LANGUAGES["counted"].allowed([]))[0])
    assert bits(GrammarGuide(second, VOCAB_SIZE, [EOS], 1).mask([])) == LANGUAGES["counted"].allowed([])


def test_threads_share_a_compiler(compiler: GrammarCompiler) -> None:
    def work(i: int) -> bool:
        if i % 10 == 3:
            with pytest.raises(InvalidRequest):
                compiler.compile(StructuredOutputs(regex=f"(a{i}"))
            return True
        matcher = compiler.compile(StructuredOutputs(choice=(f"choice {i % 25}", "b")))
        tokens = TOKENIZER.encode(f"choice {i % 25}").ids
        return GrammarGuide(matcher, VOCAB_SIZE, [EOS], 1).num_allowed([], tokens) == len(tokens)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(200)))


def test_the_program_answers_with_a_grammar_or_a_fault() -> None:
    form = {"json": None, "json_object": False, "regex": None, "choice": [], "grammar": None, "disable_any_whitespace": False}
    program = GrammarProgram()
    assert set(program.answer({**form, "regex": "a+"})) == {"grammar"}
    for wrong in ({"regex": "("}, {"grammar": "?"}, {"json": "{"}, {"json": '{"type": 3}'}, {"choice": [3]}, {"regex": 7}):
        answer = program.answer({**form, **wrong})
        assert set(answer) == {"fault"}
        assert 0 < len(answer["fault"]) <= 300
    assert grammar_program.PROGRAM_LIMITS.memory == 256 << 20


def test_an_unknown_kind_of_tokenizer_is_an_error_of_the_request() -> None:
    for broken in ("{", "{}", '{"model": {"type": "Unknown"}}'):
        with pytest.raises(InvalidRequest, match="structured_outputs does not know this checkpoint's kind of tokenizer"):
            GrammarCompiler(broken, VOCAB_SIZE, [EOS]).compile(GOOD)
