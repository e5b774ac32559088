"""``PromptLayout``: where the tokens of a hard prompt stand in the text of every item.

::

    <s> | You are a poet.\\n\\n |  fine Hello maple  | \\nQuestion: 2 + 2\\nAnswer: |  4
          head                   the hard prompt       tail                         reference

A hard prompt is written as text and tokenised again, so only tokens that come back count: none of them joins its neighbour. A line
break ends the hard prompt. Most tokenizers join nothing across it, so tokens that come back before one item do so before all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import NamedTuple

from hasten.core.errors import HastenError, InvalidOption, InvalidRequest, show
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.leading_text import with_leading_text
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.task import PromptItem
from hasten.text.tokenizer import TextTokenizer

VARIABLE = "hard_prompt"  # of the template, with the found text as its default
_MARK = "HARD-PROMPT-82d1f5"  # stands for the found text where a text is cut into head and tail
_OPENING = 32  # characters of a tail that are tokenised to see whether a hard prompt comes back


class Row(NamedTuple):
    """The tokens after the hard prompt, for one reference of an item."""

    tail_ids: list[int]
    reference_ids: list[int]


def with_hard_prompt(initial: TemplateVariant, text: str, name: str, item_variables: Collection[str] = ()) -> TemplateVariant:
    """Return the variant whose texts begin, after a system text, with ``text`` and a line break."""
    return TemplateVariant(name, with_leading_text(initial.template, VARIABLE, text, "\n", item_variables))


class PromptLayout:
    """The tokens of all items around a hard prompt. ``head_ids`` are the same for every item."""

    def __init__(
        self, tokenizer: TextTokenizer, initial: TemplateVariant, items: Sequence[PromptItem], options: TaskOptions
    ) -> None:
        """Raise ``HastenError`` if an item cannot be rendered or tokenised, or if heads differ."""
        self._tokenizer, self._initial, self._chat = tokenizer, initial, options.chat
        marked = with_hard_prompt(initial, _MARK, initial.name, items[0].variables)
        cuts = [self._cut(marked, item) for item in items]
        heads = sorted({head for head, _ in cuts})
        if len(heads) > 1:
            raise InvalidOption(
                "the text before a hard prompt differs from item to item",
                got=f"{show(heads[0])} and {show(heads[1])}",
                remedy="Optimise without the chat template",
            )
        self._head, self._tails, self._items, self._options = heads[0], [tail for _, tail in cuts], items, options
        self.head_ids = self._encode(self._head)
        self.rows = [self._rows(tail, item) for tail, item in zip(self._tails, items, strict=True)]
        self._openings = [(text, tokenizer.encode_fragment(text)) for text in sorted({tail[:_OPENING] for tail in self._tails})]

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def reads_back(self, ids: Sequence[int]) -> bool:
        """Return whether the text of the tokens is tokenised to the same tokens, before every item."""
        return all(self._reads_back(ids, text, following) for text, following in self._openings)

    def is_stable(self, ids: Sequence[int]) -> bool:
        """Return whether the text of the tokens, with nothing after it, is tokenised to the same tokens."""
        return self._reads_back(ids, "", [])

    def variant(self, ids: Sequence[int], name: str) -> TemplateVariant:
        return with_hard_prompt(self._initial, self.text(ids), name, self._items[0].variables)

    def is_exact(self, ids: Sequence[int], variant: TemplateVariant) -> bool:
        """Return whether the variant's text for every item has the tokens of the search.

        Both without and with each reference after it.
        """
        before, fragment = [*self.head_ids, *ids], self._tokenizer.encode_fragment
        for item, tail, rows in zip(self._items, self._tails, self.rows, strict=True):
            text = self._rendered(variant, item)
            if self._encode(text) != [*before, *fragment(tail)]:
                return False
            for row, reference in zip(rows, item.references, strict=True):
                joint = text + self._options.continuation(tail, reference)
                if not self._chat and self._encode(joint) != [*before, *row.tail_ids, *row.reference_ids]:
                    return False
        return True

    def longest(self) -> tuple[int, int]:
        """Return the tokens of the longest item without and with its reference, and without a hard prompt."""
        alone = max(len(self._tokenizer.encode_fragment(tail)) for tail in self._tails)
        joint = max(len(row.tail_ids) + len(row.reference_ids) for rows in self.rows for row in rows)
        return len(self.head_ids) + alone, len(self.head_ids) + joint

    def _reads_back(self, ids: Sequence[int], after: str, after_ids: list[int]) -> bool:
        text = self.text(ids)
        if self._chat and text != text.strip():  # many chat templates strip a message
            return False
        try:
            return self._encode(self._head + text + after) == [*self.head_ids, *ids, *after_ids]
        except InvalidRequest:  # the vocabulary cannot express it
            return False

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if self._chat else self._tokenizer.encode_open(text)

    def _rendered(self, variant: TemplateVariant, item: PromptItem) -> str:
        text = variant.render(item.variables)
        return self._tokenizer.render_chat([{"role": "user", "content": text}]) if self._chat else text

    def _cut(self, marked: TemplateVariant, item: PromptItem) -> tuple[str, str]:
        """Return the texts before and after the hard prompt."""
        try:
            head, *tails = self._rendered(marked, item).split(_MARK)
        except HastenError as error:
            what = f"line {item.line} of the task: {error.what}"
            raise type(error)(what, got=error.got, allowed=error.allowed, remedy=error.remedy) from error
        if len(tails) != 1:
            raise InvalidOption(f"line {item.line} of the task: a hard prompt has no place in this prompt", got=show(head))
        return head, tails[0]

    def _rows(self, tail: str, item: PromptItem) -> list[Row]:
        """Return the tokens of each reference, cut as ``LLM.score`` cuts prompt and continuation."""
        encode = self._tokenizer.encode_fragment
        rows = []
        for reference in item.references:
            continuation = self._options.continuation(tail, reference)
            if self._chat:
                rows.append(Row(encode(tail), encode(continuation)))
                continue
            joint, alone = encode(tail + continuation), encode(tail.rstrip(" "))
            num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(joint, alone, strict=False)))
            rows.append(Row(joint[:num_shared], joint[num_shared:]))
        if not all(row.reference_ids for row in rows):
            raise InvalidOption(f"line {item.line} of the task: a reference has no tokens", got=show(item.references[0]))
        return rows
