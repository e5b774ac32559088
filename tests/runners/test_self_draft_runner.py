"""Self-speculation: drafts equal the reference, and verification computes no layer twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.early_exit.reference_exits import ReferenceExits, Rule
from tests.early_exit.test_exits import exits_folder, exits_of
from tests.engine.constant_step_cost import constant_step_cost
from tests.tiny_models import tiny_reference

from hasten import LLM, SamplingParams
from hasten.core.draft import Draft
from hasten.core.plan import RowPlan
from hasten.speculative import policy
from hasten.speculative.drafters.base import DraftRequest, TargetOutput

NAME, NUM_DRAFT_LAYERS, NEW_TOKENS = "qwen3-mixed-window", 2, 12
DRAFT_IDS = tuple(range(3, 97, 5))
PROMPTS = [[3, 77, 12, 50, 50, 8, 96, 1, 1, 64, 23], [5, 9, 4, 31, 7], [40, 41, 42]]
SETTINGS: dict[str, Any] = {"dtype": "float32", "threads": 1, "kv_cache_memory": "4MiB", "block_size": 4}
SELF_DRAFTING = {"speculative_method": "self_speculation", "self_draft_layers": NUM_DRAFT_LAYERS, "num_speculative_tokens": 3}
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
REQUESTS = [{"prompt_token_ids": prompt} for prompt in PROMPTS]


class Recorder:
    """Records the drafts of an engine, and the layers and rows that its runner computes."""

    def __init__(self, llm: LLM) -> None:
        self.llm, drafter = llm, llm.engine._drafter
        self._drafter = getattr(drafter, "drafter", drafter)  # inside a SingleThreadDrafter
        self.aux_layer_indices = ()
        self.drafts: list[tuple[list[int], list[int]]] = []  # (tokens of the sequence, draft tokens)
        self.computed: list[tuple[int, int, list[int]]] = []  # (first layer, last layer, tokens of each row)
        runner = llm.engine._runner._runner  # type: ignore[attr-defined]
        for name in ("layers", "finish"):
            setattr(runner, name, self._recorded(getattr(runner, name), runner.num_layers))
        llm.engine._drafter = self

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> Sequence[Draft]:
        drafts = self._drafter.propose(requests, output)
        self.drafts += [(list(r.token_ids), list(draft.token_ids)) for r, draft in zip(requests, drafts, strict=True)]
        return drafts

    def _recorded(self, method: Callable[..., Any], num_layers: int) -> Callable[..., Any]:
        def record(rows: Sequence[RowPlan], hidden: Any, first: int, last: int | None = None) -> Any:
            if first == 0 or last is None:  # ``finish`` may call ``layers``
                self.computed.append((first, last or num_layers, [len(row.token_ids) for row in rows]))
            return method(rows, hidden, first, *([] if last is None else [last]))

        return record


def check_drafts(recorder: Recorder, reference: ReferenceExits) -> None:
    """Check that every draft is the greedy continuation of the draft layers."""
    assert sum(len(draft) for _, draft in recorder.drafts) > 40
    for tokens, draft in recorder.drafts:
        if draft:
            expected = reference.generate(tokens, len(draft), Rule("fixed", layer=NUM_DRAFT_LAYERS))
            assert expected.smallest_margin > 1e-4
            assert draft == expected.token_ids


@pytest.fixture
def always_expand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are expanded however unlikely they are."""
    monkeypatch.setattr(policy, "min_expand_probability", lambda *_: 0.0)


@pytest.fixture
def recorder(tiny: Callable[[str], Path], always_expand: None, request: pytest.FixtureRequest) -> Recorder:
    with constant_step_cost():
        recorder = Recorder(LLM(str(tiny(NAME)), backend=request.param, **SELF_DRAFTING, **SETTINGS))
    recorder.llm.generate(REQUESTS, GREEDY, use_tqdm=False)
    return recorder


@pytest.mark.parametrize("recorder", ["cpu", "torch"], indirect=True)
def test_drafts_equal_the_first_layers(recorder: Recorder) -> None:
    check_drafts(recorder, ReferenceExits(tiny_reference(NAME), {}))


@pytest.mark.parametrize("recorder", ["cpu", "torch"], indirect=True)
def test_verification_computes_the_first_layers_of_the_last_draft_token_only(recorder: Recorder) -> None:
    """Drafting has computed all tokens before it; the remaining layers compute all tokens."""
    num_layers = tiny_reference(NAME).config.num_hidden_layers
    pairs = zip(recorder.computed, recorder.computed[1:], strict=False)
    full = [(below, above) for below, above in pairs if above[1] == num_layers and max(above[2]) == 4]
    assert len(full) > 3
    for below, above in full:
        assert (below[0], below[1], above[0]) == (0, NUM_DRAFT_LAYERS, NUM_DRAFT_LAYERS)
        assert below[2] == [1] * len(above[2])


class DraftVocabularyExits(ReferenceExits):
    """Exits whose logits are those of ``DRAFT_IDS`` only."""

    def _logits(self, exit_layer: int, hidden_E: torch.Tensor) -> torch.Tensor:
        logits_V = super()._logits(exit_layer, hidden_E)
        return logits_V.where(torch.isin(torch.arange(len(logits_V)), torch.tensor(DRAFT_IDS)), -torch.inf)


@pytest.mark.usefixtures("always_expand")
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_drafts_come_from_the_draft_vocabulary(tiny: Callable[[str], Path], tmp_path: Path, backend: str) -> None:
    """Drafts are the tuned lens's top tokens of that vocabulary; the output is that of plain decoding."""
    exits = exits_folder(NAME, tmp_path / "exits", DRAFT_IDS)
    with constant_step_cost():
        recorder = Recorder(LLM(str(tiny(NAME)), exits=str(exits), backend=backend, **SELF_DRAFTING, **SETTINGS))
    outputs = recorder.llm.generate(REQUESTS, GREEDY, use_tqdm=False)
    plain = LLM(str(tiny(NAME)), speculative_method="off", backend=backend, **SETTINGS).generate(REQUESTS, GREEDY, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in plain]
    draft_tokens = {token for _, draft in recorder.drafts for token in draft}
    assert draft_tokens <= set(DRAFT_IDS) and len(draft_tokens) > 3
    check_drafts(recorder, DraftVocabularyExits(tiny_reference(NAME), exits_of(NAME)))


@pytest.mark.parametrize(("agreements", "num_draft_layers"), [([0.9, 0.9, 0.9], 1), ([0.1, 0.1, 1.0], 3), (None, 2)])
def test_the_exit_with_the_best_speed_up_drafts(
    tiny: Callable[[str], Path], tmp_path: Path, agreements: Any, num_draft_layers: int
) -> None:
    """The measured agreements decide; without them half of the layers draft."""
    config = {} if agreements is None else {"agreements": agreements}
    exits = exits_folder(NAME, tmp_path / "exits", DRAFT_IDS, **config)
    with constant_step_cost():
        recorder = Recorder(LLM(str(tiny(NAME)), exits=str(exits), speculative_method="self_speculation", **SETTINGS))
    recorder.llm.generate(REQUESTS[0], GREEDY.replace(max_tokens=6), use_tqdm=False)
    assert {last for first, last, _ in recorder.computed if first == 0 and last < 4} == {num_draft_layers}
