"""Beam search equals that of transformers and brute force, and the tests catch planted faults."""

import dataclasses
import inspect
import itertools
import math
import random
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import msgpack
import pytest
import torch
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from hasten.search import beam as beam_module
from hasten.search.beam import BeamCandidate, BeamHypothesis, BeamSearch
from hasten.search.candidates import best_candidates

NUM_CASES = 168
EARLY = (False, True, "never")


@dataclass(frozen=True)
class Case:
    model: int
    prompt: tuple[int, ...]
    beam_width: int
    length_penalty: float
    early_stopping: bool | str
    num_return_sequences: int
    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    ending_bias: float = 0.0  # added to the log-probability of each ending token, so that many beams end together

    def search(self, kind: type[BeamSearch] = BeamSearch) -> BeamSearch:
        names = ("beam_width", "length_penalty", "early_stopping", "num_return_sequences", "eos_token_ids", "max_new_tokens")
        return kind(**{name: getattr(self, name) for name in names})

    def processors(self) -> LogitsProcessorList:
        """Return the processors that generate applies after log-softmax, in its order."""
        chain = LogitsProcessorList()
        if self.sequence_bias():
            chain.append(SequenceBiasLogitsProcessor(self.sequence_bias()))
        if self.repetition_penalty:
            chain.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            chain.append(NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        return chain

    def sequence_bias(self) -> list[list[Any]] | None:
        return [[[token], self.ending_bias] for token in self.eos_token_ids if self.ending_bias] or None


@cache
def tiny_llama(seed: int) -> LlamaForCausalLM:
    """Return a model of one layer whose next token is neither certain nor uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=(33, 48, 64)[seed % 3],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(0, 0.25)
    return model


@cache
def logprobs(seed: int, ids: tuple[int, ...]) -> torch.Tensor:
    return tiny_llama(seed)(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@cache
def likely_tokens(seed: int) -> list[int]:
    """Return tokens by mean probability: the first ones end many beams as ending tokens."""
    mean = sum(logprobs(seed, (1, token)).exp() for token in range(2, 32))
    assert isinstance(mean, torch.Tensor)
    return [int(token) for token in mean.argsort(descending=True)]


@cache
def case(number: int) -> Case:
    draw = random.Random(number)
    model, width = draw.randrange(3), number % 6 + 1
    return Case(
        model=model,
        prompt=tuple(draw.randrange(33) for _ in range(draw.randint(1, 5))),
        beam_width=width,
        length_penalty=draw.choice((-1.0, 0.0, 0.6, 1.0, 2.0)),
        early_stopping=EARLY[number // 6 % 3],
        num_return_sequences=draw.randint(1, width),
        eos_token_ids=tuple(draw.sample(likely_tokens(model)[:6], draw.randint(1, 3))) if number % 10 else (),
        max_new_tokens=draw.randint(1, 20),
        repetition_penalty=draw.choice((None, None, 1.3, 0.8)),
        no_repeat_ngram_size=draw.choice((None, None, 1, 2)),
        ending_bias=draw.choice((0.0, 0.0, 1.0, 3.0)),
    )


@cache
def by_transformers(case: Case) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]:
    """Return the new tokens and the score of each returned sequence."""
    options = {
        "num_beams": case.beam_width,
        "num_return_sequences": case.num_return_sequences,
        "length_penalty": case.length_penalty,
        "early_stopping": case.early_stopping,
        "eos_token_id": list(case.eos_token_ids) or None,
        "max_new_tokens": case.max_new_tokens,
        "repetition_penalty": case.repetition_penalty,
        "no_repeat_ngram_size": case.no_repeat_ngram_size,
        "sequence_bias": case.sequence_bias(),
    }
    out: Any = tiny_llama(case.model).generate(
        torch.tensor([case.prompt]),
        attention_mask=torch.ones(1, len(case.prompt), dtype=torch.long),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        # With num_beams=1 generate runs greedy search; this is the beam search that it runs otherwise.
        custom_generate=GenerationMixin._beam_search,
        **{name: value for name, value in options.items() if value is not None},
    )
    lengths = (out.beam_indices >= 0).sum(dim=1).tolist()
    new = [tuple(row[:n]) for row, n in zip(out.sequences[:, len(case.prompt) :].tolist(), lengths, strict=True)]
    return tuple(new), tuple(out.sequences_scores.tolist())


def by_hasten(case: Case, kind: type[BeamSearch] = BeamSearch) -> tuple[BeamHypothesis, ...]:
    """Run the search as the engine does; the model runs densely for each live beam."""
    search, beams, processors = case.search(kind), [case.prompt], cast(Any, case.processors())
    while not search.done:
        assert len(beams[0]) < len(case.prompt) + case.max_new_tokens, "ran past max_new_tokens"
        scores_BV = processors(torch.tensor(beams), torch.stack([logprobs(case.model, beam) for beam in beams]))
        step = search.advance(best_candidates(scores_BV, search.beam_scores, search.num_candidates))
        assert step.done == search.done
        beams = [(*beams[beam.parent], beam.token_id) for beam in step.beams]
    return search.best()


def agrees(case: Case, kind: type[BeamSearch] = BeamSearch) -> bool:
    sequences, scores = by_transformers(case)
    best = by_hasten(case, kind)
    return tuple(h.token_ids for h in best) == sequences and all(
        math.isclose(h.score, score, rel_tol=1e-5, abs_tol=1e-4) for h, score in zip(best, scores, strict=True)
    )


@pytest.mark.parametrize("early_stopping", EARLY)
def test_equals_transformers(early_stopping):
    cases = [case(number) for number in range(NUM_CASES) if case(number).early_stopping == early_stopping]
    assert [c for c in cases if not agrees(c)] == []


def test_the_cases_reach_every_way_to_end():
    best = [(c, h) for c in map(case, range(NUM_CASES)) for h in by_hasten(c)]
    assert sum(h.finished and len(h.token_ids) < c.max_new_tokens for c, h in best) > 60
    assert sum(not h.finished and bool(c.eos_token_ids) for c, h in best) > 30
    for c, h in best:
        assert h.finished == (h.token_ids[-1] in c.eos_token_ids)
        assert h.finished or len(h.token_ids) == c.max_new_tokens


MUTANTS = {
    "length penalty one token longer": ("length = len(self.beam_token_ids[0]) + 1\n", "length = len(self.beam_token_ids[0]) + 2\n"),
    "only beam_width candidates": ("return max(2, 1 + len(self.eos_token_ids)) * self.beam_width", "return self.beam_width"),
    "one ending token assumed": ("1 + len(self.eos_token_ids)", "2"),
    "ending outside the best beam_width": ("rank < self.beam_width", "True"),
    "an ended beam stays live": ("token_id not in self.eos_token_ids:", "token_id >= 0:"),
    "early_stopping=True ignored": ("self.early_stopping is True", "False"),
    '"never" taken for False': ('self.early_stopping == "never" and', "False and"),
    "False taken for never": ('self.early_stopping == "never" and', "True and"),
    "stops when full": ("self._penalised(live[0].score, final_length) <= self.hypotheses[-1].score", "True"),
    "compares with the best hypothesis": ("self.hypotheses[-1].score", "self.hypotheses[0].score"),
    "no length penalty in the estimate": ("self._penalised(live[0].score, final_length)", "live[0].score"),
    "one token too few": ("length == self.max_new_tokens", "length == max(1, self.max_new_tokens - 1)"),
    "wrong parent": ("(*self.beam_token_ids[beam.parent], beam", "(*self.beam_token_ids[0], beam"),
}


def mutant(old: str, new: str) -> type[BeamSearch]:
    source = inspect.getsource(beam_module)
    assert source.count(old) == 1, f"the source no longer contains {old!r}"
    namespace = {"__name__": beam_module.__name__}
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)
    return cast(type[BeamSearch], namespace["BeamSearch"])


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_planted_fault_is_caught(fault):
    kind = mutant(*MUTANTS[fault])

    def wrong(case: Case) -> bool:
        try:
            return not agrees(case, kind)
        except (AssertionError, ValueError, IndexError):
            return True

    assert any(wrong(case(number)) for number in range(NUM_CASES))


def table_row(tokens: tuple[int, ...], vocab_size: int) -> list[float]:
    """Return the log-probabilities after these tokens, of a model that is a table."""
    generator = torch.Generator().manual_seed(int("1" + "".join(map(str, tokens))))
    return torch.randn(vocab_size, generator=generator).mul(2).log_softmax(-1).tolist()


@pytest.mark.parametrize("length_penalty", (-1.0, 0.0, 1.0, 2.0))
@pytest.mark.parametrize("early_stopping", EARLY)
def test_search_as_wide_as_the_tree_is_exhaustive(length_penalty, early_stopping):
    vocab_size, depth, eos = 3, 4, 2
    expected: dict[tuple[int, ...], float] = {}
    for product in itertools.product(range(vocab_size), repeat=depth):
        tokens = product[: product.index(eos) + 1] if eos in product else product
        total = sum(table_row(tokens[:position], vocab_size)[token] for position, token in enumerate(tokens))
        expected[tokens] = total / len(tokens) ** length_penalty
    width = vocab_size**depth
    search = BeamSearch(
        beam_width=width,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        num_return_sequences=width,
        eos_token_ids=(eos,),
        max_new_tokens=depth,
    )
    while not search.done:
        logprobs_BV = torch.tensor([table_row(tokens, vocab_size) for tokens in search.beam_token_ids])
        search.advance(best_candidates(logprobs_BV, search.beam_scores, search.num_candidates))
    found = {h.token_ids: h.score for h in search.best()}
    assert list(found) == sorted(expected, key=lambda tokens: -expected[tokens])
    assert found == pytest.approx(expected, abs=1e-5)


def small_search(**changes) -> BeamSearch:
    options = {"beam_width": 3, "length_penalty": 1.0, "early_stopping": False, "num_return_sequences": 3, "max_new_tokens": 9}
    return BeamSearch(**{"eos_token_ids": (0,), **options, **changes})


def test_a_step_returns_live_beams_and_ended_candidates():
    search = small_search(beam_width=2, num_return_sequences=2)
    assert (search.num_candidates, search.beam_scores, search.beam_token_ids) == (4, (0.0,), ((),))
    first = search.advance(
        [BeamCandidate(0, 5, -1.0), BeamCandidate(0, 6, -2.0), BeamCandidate(0, 0, -3.0), BeamCandidate(0, 7, -4.0)]
    )
    assert first.beams == (BeamCandidate(0, 5, -1.0), BeamCandidate(0, 6, -2.0))
    assert first.ended == ()
    second = search.advance(
        [BeamCandidate(1, 0, -2.1), BeamCandidate(1, 8, -2.2), BeamCandidate(1, 9, -2.3), BeamCandidate(0, 0, -2.4)]
    )
    assert second.beams == (BeamCandidate(1, 8, -2.2), BeamCandidate(1, 9, -2.3))
    assert second.ended == (BeamCandidate(1, 0, -2.1),)
    assert search.beam_token_ids == ((6, 8), (6, 9))
    # Live beams count before the search is done, so that an aborted request returns its best sequences.
    assert [h.token_ids for h in search.best()] == [(6, 0), (6, 8)]
    assert [h.finished for h in search.best()] == [True, False]


def test_before_the_first_step_the_answer_has_no_tokens():
    assert small_search().best() == (BeamHypothesis((), 0.0, False),)


def test_if_fewer_beams_are_possible_there_are_fewer_answers():
    search = small_search(max_new_tokens=2)
    search.advance([BeamCandidate(0, 4, -0.5)])
    step = search.advance([BeamCandidate(0, 0, -0.5)])
    assert step.done
    assert search.best() == (BeamHypothesis((4, 0), -0.25, True),)


def test_if_all_tokens_are_forbidden_the_live_beams_become_hypotheses():
    search = small_search()
    search.advance([BeamCandidate(0, 4, -1.0), BeamCandidate(0, 5, -2.0)])
    assert search.advance([]).done
    assert search.best() == (BeamHypothesis((4,), -1.0, False), BeamHypothesis((5,), -2.0, False))


@pytest.mark.parametrize("length_penalty", (1e3, -1e3))
def test_extreme_length_penalties_do_not_overflow(length_penalty):
    search = small_search(
        length_penalty=length_penalty, beam_width=1, num_return_sequences=1, max_new_tokens=4000, early_stopping="never"
    )
    for _ in range(50):
        if not search.done:
            search.advance([BeamCandidate(0, 4, -1.0), BeamCandidate(0, 0, -2.0)])
    assert math.isfinite(search.best()[0].score)


def test_advance_rejects_unsorted_candidates_and_calls_after_the_end():
    with pytest.raises(AssertionError, match="best first"):
        small_search().advance([BeamCandidate(0, 1, -2.0), BeamCandidate(0, 2, -1.0)])
    search = small_search(max_new_tokens=1)
    search.advance([BeamCandidate(0, 1, -2.0)])
    with pytest.raises(AssertionError, match="done"):
        search.advance([BeamCandidate(0, 1, -2.0)])


def test_steps_hypotheses_and_state_are_plain_data():
    search = small_search()
    step = search.advance([BeamCandidate(0, 0, -1.0), BeamCandidate(0, 1, -2.0)])
    for value in (*step.beams, *step.ended, *search.best()):
        values = dataclasses.astuple(cast(Any, value))
        assert msgpack.unpackb(msgpack.packb(values), use_list=False) == values
    assert msgpack.unpackb(msgpack.packb(dataclasses.asdict(search)), use_list=False)["beam_scores"] == search.beam_scores


@pytest.mark.parametrize("k", (1, 4, 7, 100))
@pytest.mark.parametrize("levels", (2, 5, 1000))
def test_best_candidates_equals_a_sort(k, levels):
    """Few levels make many ties: the earlier beam, then the smaller token, comes first."""
    generator = torch.Generator().manual_seed(k * levels)
    table = torch.randint(-levels, 0, (3, 11), generator=generator).float()
    table[table == -levels] = -math.inf
    scores = (-1.0, -2.0, -1.0)
    every = [(-(scores[b] + float(table[b, t])), b, t) for b in range(3) for t in range(11) if table[b, t] > -math.inf]
    expected = [BeamCandidate(b, t, -negated) for negated, b, t in sorted(every)[:k]]
    assert best_candidates(table, scores, k) == expected


def test_best_candidates_equals_topk_of_the_flattened_beams():
    table = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    scores = [-0.25, -1.0, -1.5, -7.0]
    values, indices = torch.topk((table + torch.tensor(scores)[:, None]).flatten(), 12)
    found = best_candidates(table, scores, 12)
    assert [(c.parent * 50 + c.token_id) for c in found] == indices.tolist()
    assert [c.score for c in found] == values.tolist()
