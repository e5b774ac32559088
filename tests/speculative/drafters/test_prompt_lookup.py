"""Prompt lookup against its definition, on texts that grow by one token or by several."""

from __future__ import annotations

import random

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.speculative.drafters.base import DraftRequest
from hasten.speculative.drafters.prompt_lookup import PromptLookup

REQUEST = Request(request_id="r", prompt_token_ids=(1,), params=SamplingParams())


def by_definition(text: list[int], num_tokens: int, max_match: int, min_match: int) -> tuple[int, ...]:
    """Return what follows the last earlier occurrence of the longest repeated suffix, repeated as needed."""
    for size in range(max_match, min_match - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[len(text) - size :]:
                draft = list(text)
                while len(draft) < len(text) + min(num_tokens, 2 * size):
                    draft.append(draft[len(draft) - (len(text) - end)])
                return tuple(draft[len(text) :])
    return ()


def test_drafts_follow_the_definition_while_texts_grow() -> None:
    draw = random.Random(5)
    drafter = PromptLookup(5, max_match=4, min_match=2)
    texts: dict[int, list[int]] = {}
    num_drafts = 0
    for step in range(400):
        if len(texts) < 4:
            texts[step] = [draw.randrange(4) for _ in range(draw.randint(1, 12))]
        elif draw.random() < 0.05:
            del texts[draw.choice(sorted(texts))]
        requests = [DraftRequest(key, text, REQUEST, 0) for key, text in texts.items()]
        drafts = drafter.propose(requests)
        assert [draft.token_ids for draft in drafts] == [by_definition(text, 5, 4, 2) for text in texts.values()]
        num_drafts += sum(map(bool, drafts))
        for text in texts.values():
            text += [draw.randrange(4) for _ in range(draw.choice((1, 1, 1, 6)))]
    assert num_drafts > 500


def test_a_repeating_text_is_continued_by_repetition() -> None:
    request = DraftRequest(0, [9, 1, 2, 3, 1, 2, 3, 1, 2, 3], REQUEST, 0)
    assert PromptLookup(7).propose([request]) == [Draft.chain((1, 2, 3, 1, 2, 3, 1))]


def test_nothing_is_drafted_without_an_earlier_occurrence() -> None:
    assert PromptLookup(7).propose([DraftRequest(0, [1, 2, 3, 4, 5], REQUEST, 0), DraftRequest(1, [7], REQUEST, 0)]) == [
        NO_DRAFT,
        NO_DRAFT,
    ]


def test_the_index_of_an_absent_request_is_dropped() -> None:
    drafter = PromptLookup()
    drafter.propose([DraftRequest(0, [1, 2, 3], REQUEST, 0), DraftRequest(1, [1, 2, 3], REQUEST, 0)])
    drafter.propose([DraftRequest(1, [1, 2, 3, 4], REQUEST, 0)])
    assert list(drafter._indices) == [1]
