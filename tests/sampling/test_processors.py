"""Every processor gives the logits of transformers, in batches whose rows have different settings."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tests.sampling.oracles import ORACLES, VOCAB
from tests.sampling.rows import assert_same, make_logits, make_row, row_by_row

from hasten.sampling import processors
from hasten.sampling.chain import PROCESSORS, WARPERS, registered_name
from hasten.sampling.row import SamplingRow

REGISTERED = {registered_name(processor): processor for processor in PROCESSORS + WARPERS}


def compare(name: str, processor, kind: str) -> None:
    for seed in range(4):
        compare_batch(name, processor, kind, seed)


def compare_batch(name: str, processor, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    oracle = ORACLES[name]
    rows = [make_row(rng, VOCAB, **oracle.settings(rng)) for _ in range(24)]
    rows += [make_row(rng, VOCAB, **edge) for edge in oracle.edges]
    logits_RV = make_logits(kind, len(rows), VOCAB, seed)
    assert all(processor.applies(row.params) for row in rows)
    assert_same(processor(logits_RV.clone(), rows), row_by_row(oracle.processor, logits_RV, rows))


@pytest.mark.parametrize("kind", ["plain", "tied", "masked"])
@pytest.mark.parametrize("name", ORACLES)
def test_equal_to_transformers(name: str, kind: str) -> None:
    compare(name, REGISTERED[name], kind)


def test_every_processor_file_is_in_the_chain_once_and_has_an_oracle() -> None:
    files = {path.stem for path in Path(processors.__path__[0]).glob("*.py")} - {"__init__"}
    assert files == set(REGISTERED) == {*ORACLES, "guided_tokens"}  # the oracle of guides is in tests/sampling/guides
    assert len(PROCESSORS + WARPERS) == len(files)


@pytest.mark.parametrize("name", ORACLES)
def test_no_processor_applies_to_default_settings(name: str) -> None:
    assert not REGISTERED[name].applies(make_row(random.Random(0), VOCAB).params)


@pytest.mark.parametrize("name", ORACLES)
def test_a_fully_masked_row_stays_so(name: str) -> None:
    rng = random.Random(1)
    rows = [make_row(rng, VOCAB, **ORACLES[name].settings(rng)) for _ in range(3)]
    logits_RV = make_logits("plain", 3, VOCAB)
    logits_RV[1] = -torch.inf
    processed_RV = REGISTERED[name](logits_RV.clone(), rows)
    assert not processed_RV.isnan().any()
    assert (processed_RV[1] == -torch.inf).all()
    assert (processed_RV[[0, 2]].amax(dim=1) > -torch.inf).all()


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-300])
def test_the_smallest_temperatures_act_as_greedy(temperature: float) -> None:
    logits_RV = make_logits("plain", 4, VOCAB) * 100
    rows = [make_row(random.Random(0), VOCAB, temperature=temperature) for _ in range(4)]
    warped_RV = REGISTERED["temperature"](logits_RV.clone(), rows)
    assert torch.equal(warped_RV.argmax(dim=1), logits_RV.argmax(dim=1))
    assert (warped_RV.softmax(dim=1).amax(dim=1) > 0.999).all()


@pytest.mark.parametrize(
    "settings",
    [{"logit_bias": {VOCAB: 100.0, VOCAB + 3: 50.0}}, {"bad_words_ids": ((VOCAB,), (VOCAB + 3,))}, {"stop_token_ids": (VOCAB,)}],
)
def test_ids_past_the_vocabulary_change_no_row(settings: dict) -> None:
    rng = random.Random(3)
    rows = [make_row(rng, VOCAB, min_tokens=99, **settings)._replace(eos_token_ids=()) for _ in range(3)]
    logits_RV = make_logits("plain", 3, VOCAB)
    for processor in PROCESSORS:
        if processor.applies(rows[0].params):
            assert torch.equal(processor(logits_RV.clone(), rows), logits_RV)


def test_a_prompt_token_past_the_vocabulary_changes_no_row() -> None:
    settings = {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 1.0, "no_repeat_ngram_size": 1}
    row = make_row(random.Random(3), VOCAB, **settings)._replace(token_ids=[VOCAB, VOCAB + 1, 4], num_prompt_tokens=1)
    logits_RV = make_logits("plain", 2, VOCAB)
    for processor in PROCESSORS:
        if processor.applies(row.params):
            changed_RV = processor(logits_RV.clone(), [row, row]) != logits_RV
            assert changed_RV.nonzero().tolist() == [[0, 4], [1, 4]]


def altered(name: str, change):
    """Return the processor with a planted fault: it gets ``change(row)`` instead of the row."""

    class Faulty:
        def applies(self, params):
            return True

        def __call__(self, logits_RV, rows):
            return REGISTERED[name](logits_RV, [change(row) for row in rows])

    return Faulty()


def change_setting(name: str, new_value) -> object:
    def change(row: SamplingRow) -> SamplingRow:
        return row._replace(params=row.params.replace(**{name: new_value(getattr(row.params, name))}))

    return change


FAULTS = {
    "top-k one too many": ("top_k", change_setting("top_k", lambda k: k + 1)),
    "top-k one too few": ("top_k", change_setting("top_k", lambda k: max(1, k - 1))),
    "presence penalty counts the prompt": ("presence_penalty", lambda row: row._replace(num_prompt_tokens=0)),
    "frequency penalty counts the prompt": ("frequency_penalty", lambda row: row._replace(num_prompt_tokens=0)),
    "repetition penalty ignores the prompt": (
        "repetition_penalty",
        lambda row: row._replace(token_ids=row.token_ids[row.num_prompt_tokens :], num_prompt_tokens=0),
    ),
    "n-gram one token too long": ("no_repeat_ngram", change_setting("no_repeat_ngram_size", lambda n: n + 1)),
    "min-tokens one too few": ("min_tokens", change_setting("min_tokens", lambda n: n - 1)),
    "bad words ignore the newest token": ("bad_words", lambda row: row._replace(token_ids=row.token_ids[:-1])),
    "one top-p for all rows": ("top_p", change_setting("top_p", lambda _: 0.5)),
    "typical-p a little off": ("typical_p", change_setting("typical_p", lambda p: p * 0.9)),
    "min-p a little off": ("min_p", change_setting("min_p", lambda p: p * 0.8)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    name, change = FAULTS[fault]
    with pytest.raises(AssertionError):
        compare(name, altered(name, change), "plain")
