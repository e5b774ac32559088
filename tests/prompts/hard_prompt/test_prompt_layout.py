"""A hard prompt's text has the tokens of the search again, in every template, before every item."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer

from hasten import LLM
from hasten.checkpoints.hub import resolve
from hasten.core.errors import HastenError, InvalidOption
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.hard_prompt.printable_tokens import printable_tokens
from hasten.prompts.hard_prompt.prompt_layout import PromptLayout, with_hard_prompt
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.task import PromptItem
from hasten.prompts.template import PromptTemplate
from hasten.text.tokenizer import TextTokenizer

ITEMS = (PromptItem(1, {"input": "2 + 2"}, ("4", "four")), PromptItem(2, {"input": "os.path "}, (" join",)))
FOUND = ("plain words", "{{ input }}", "{% raw %}", "{# no", "#} }} %}", "a\rb\r\nc", " two  spaces ", "'\"\\n", "你好")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    found = TextTokenizer.load(resolve("demo"), 8192)
    assert found is not None
    return found


def variant(text: str, **fields: Any) -> TemplateVariant:
    return TemplateVariant("v", PromptTemplate("v", text, **fields))


@pytest.mark.parametrize(
    "initial",
    [
        variant("Q: {{ input }}\nA:"),
        variant("{{- input }}"),
        variant("{%- if input %}yes {{ input }}{% endif -%} "),
        variant("  {% if input %}\n  indented {{ input }}\n{% endif %}\nend"),
        variant("{#- a comment -#}\n{{ input }}"),
        variant("\n\n{{ input }}\n"),
        variant("{{ input }} {{ hard_prompt }}", defaults={"hard_prompt": "mine"}),
        variant("{{ input }}", system="Be brief."),
    ],
    ids=lambda one: one.template.text,
)
def test_any_text_stands_before_any_template_unchanged(initial: TemplateVariant) -> None:
    rendered = initial.render({"input": "x"})
    system = f"{initial.template.system}\n\n" if initial.template.system else ""
    for text in FOUND:
        found = with_hard_prompt(initial, text, "found")
        assert found.render({"input": "x"}) == f"{system}{text}\n{rendered.removeprefix(system)}"
        assert found.name == "found" and found.digest != initial.digest
        item = {"input": "x", "hard_prompt": "of the item"}
        found = with_hard_prompt(initial, text, "found", item)
        assert found.render(item) == f"{system}{text}\n{initial.render(item).removeprefix(system)}"


def random_prompts(layout: PromptLayout, tokenizer: TextTokenizer, num: int) -> list[list[int]]:
    draw, tokens = random.Random(0), printable_tokens(tokenizer, 8192)
    drawn = (draw.choices(tokens, k=5) for _ in range(40 * num))
    return [ids for ids in drawn if layout.reads_back(ids)][:num]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("system", [None, "You know Python."])
def test_a_found_variant_has_the_tokens_of_the_search(tokenizer: TextTokenizer, system: str | None, chat: bool) -> None:
    """The tokens are those of the ``tokenizers`` library, for the text that evaluation sends."""
    plain, initial = Tokenizer.from_file(str(resolve("demo") / "tokenizer.json")), variant("Q: {{ input }}\nA:", system=system)
    layout = PromptLayout(tokenizer, initial, ITEMS, TaskOptions(chat=chat))
    prompts = random_prompts(layout, tokenizer, 20)
    assert len(prompts) == 20
    for ids in prompts:
        found = layout.variant(ids, "found")
        assert layout.is_exact(ids, found)
        for item, rows in zip(ITEMS, layout.rows, strict=True):
            text = found.render(item.variables)
            if chat:
                text = tokenizer.render_chat([{"role": "user", "content": text}])
            sent = plain.encode(text, add_special_tokens=not chat).ids
            assert sent[: len(layout.head_ids) + 5] == [*layout.head_ids, *ids]
            assert plain.decode(ids) == found.template.defaults["hard_prompt"]
            if chat:
                assert sent == [*layout.head_ids, *ids, *rows[0].tail_ids]


def test_an_item_is_cut_as_the_metric_cuts_it(llm: LLM) -> None:
    layout = PromptLayout(llm.tokenizer, variant("{{ input }}"), ITEMS, TaskOptions())
    (ids,) = random_prompts(layout, llm.tokenizer, 1)
    for item, rows in zip(ITEMS, layout.rows, strict=True):
        text = layout.variant(ids, "found").render(item.variables)
        scores = llm.score(text, [TaskOptions().continuation(text, reference) for reference in item.references])
        assert [list(score.token_ids) for score in scores] == [row.reference_ids for row in rows]
        assert all(row.tail_ids for row in rows)


def ids_of(tokenizer: TextTokenizer, *texts: str) -> Sequence[int]:
    return [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False)]


def test_tokens_that_join_their_neighbours_do_not_read_back(tokenizer: TextTokenizer) -> None:
    layout = PromptLayout(tokenizer, variant("{{ input }}"), ITEMS, TaskOptions())
    apart = ids_of(tokenizer, "im", "port")
    assert ids_of(tokenizer, "import") != apart
    assert not layout.reads_back(apart) and not layout.is_stable(apart)
    assert layout.reads_back(ids_of(tokenizer, "import"))
    # A line break may join what comes after it; a tail that begins with spaces is one.
    blank = ids_of(tokenizer, "import", "\n")
    spaced = PromptLayout(tokenizer, variant("\n  {{ input }}"), ITEMS, TaskOptions())
    assert layout.is_stable(blank) and not spaced.reads_back(blank)
    assert not layout.is_exact(blank, layout.variant(apart, "found"))


def test_what_a_chat_template_strips_does_not_read_back() -> None:
    plain = Tokenizer.from_file(str(resolve("demo") / "tokenizer.json"))
    for filtered, reads_back in (("content", True), ("content | trim", False)):
        chatting = TextTokenizer(plain, chat_template=f"{{{{ messages[0].{filtered} }}}}!")
        layout = PromptLayout(chatting, variant("{{ input }}"), ITEMS, TaskOptions(chat=True))
        padded = plain.encode(" import", add_special_tokens=False).ids
        assert layout.is_exact(padded, layout.variant(padded, "found")) == reads_back
        assert not layout.reads_back(padded)  # whether a template strips is not known before
        assert layout.reads_back(plain.encode("import", add_special_tokens=False).ids)


def test_the_longest_item_is_counted_with_and_without_its_reference(tokenizer: TextTokenizer) -> None:
    layout = PromptLayout(tokenizer, variant("{{ input }}"), ITEMS, TaskOptions())
    ids = list(ids_of(tokenizer, "import"))
    texts = [layout.variant(ids, "found").render(item.variables) for item in ITEMS]
    alone = max(len(tokenizer.encode(text)) for text in texts) - 1
    joint = max(len(tokenizer.encode(text + reference)) for text, reference in zip(texts, (" four", " join"), strict=True)) - 1
    assert layout.longest() == (alone, joint)


def test_printable_tokens_are_texts_by_themselves(tokenizer: TextTokenizer) -> None:
    plain = Tokenizer.from_file(str(resolve("demo") / "tokenizer.json"))
    found = set(printable_tokens(tokenizer, 8200))  # an embedding may have more rows than there are tokens
    assert max(found) < 8192
    for token in range(8192):
        text = plain.decode([token], skip_special_tokens=False)
        is_text = all(character.isprintable() and character != "\ufffd" for character in text) and not text.isspace()
        assert (token in found) == (is_text and bool(text) and token > 15)  # the first 16 are special tokens


def test_what_has_no_place_for_a_hard_prompt_is_named(tokenizer: TextTokenizer) -> None:
    wrong = PromptItem(7, {"other": "x"}, ("y",))
    with pytest.raises(HastenError, match=r"line 7 of the task: the variables do not fit"):
        PromptLayout(tokenizer, variant("{{ input }}"), [*ITEMS, wrong], TaskOptions())
    for template, message in (
        ("{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}", "line 1 of the task: a hard prompt has no place"),
        ("{{ messages[0].content | length }} {{ messages[0].content }}", "differs from item to item"),
    ):
        plain = Tokenizer.from_file(str(resolve("demo") / "tokenizer.json"))
        with pytest.raises(InvalidOption, match=message):
            PromptLayout(TextTokenizer(plain, chat_template=template), variant("{{ input }}"), ITEMS, TaskOptions(chat=True))
    empty = TextTokenizer(Tokenizer.from_str(_BARE))
    with pytest.raises(InvalidOption, match="no token of this checkpoint is printable text"):
        printable_tokens(empty, 1)


_BARE = '{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"\\u0007":0},"unk_token":"\\u0007"}}'
