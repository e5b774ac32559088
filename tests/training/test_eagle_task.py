"""An EAGLE-3 head learns its target's choices and drafts the same tokens when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import tiny_reference
from torch import Tensor

from hasten.core.errors import CheckpointError, InvalidOption
from hasten.layers.attention import DenseContext
from hasten.layers.eagle import EagleHead
from hasten.models.decoder import Decoder
from hasten.models.eagle import load_eagle
from hasten.training import eagle_task
from hasten.training.corpus import Batch, Corpus
from hasten.training.draft_score import DraftScore
from hasten.training.eagle_task import EagleTask, hub_name
from hasten.training.recipes import EagleRecipe
from hasten.training.target_model import TargetModel

PERIOD = [5, 17, 3, 88, 41, 60, 29]
SEQ_LEN, STEPS = 24, 4


@pytest.fixture(scope="module")
def fluent_target(tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    """A tiny model, trained to continue the text of period 7."""
    folder = tmp_path_factory.mktemp("fluent_target")
    model = tiny_reference("llama-gqa").requires_grad_(True)
    ids = torch.tensor([(PERIOD * 6)[phase : phase + 30] for phase in range(7)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return TargetModel.load(folder)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.split([PERIOD * 60], SEQ_LEN, 0.2, None)


def _train(task: EagleTask, corpus: Corpus, steps: int = 80) -> None:
    optimizer = torch.optim.AdamW(list(task.parameters().values()), lr=3e-3)
    for step in range(steps):
        task.loss(corpus.batch(step, 4, SEQ_LEN, 0)).backward()
        optimizer.step()
        optimizer.zero_grad()


def _score(task: EagleTask, corpus: Corpus) -> DraftScore:
    with torch.no_grad():
        return sum((task.evaluate(batch) for batch in corpus.validation_batches(4, SEQ_LEN, 8)), DraftScore.zero())


def _greedy(decoder: Decoder, ids: list[int], count: int) -> list[int]:
    """Return the target's greedy continuation. Every token recomputes the sequence."""
    for _ in range(count):
        context = DenseContext(decoder.ops, decoder.rotary, [len(ids)])
        hidden = decoder.run(decoder.embed(torch.tensor(ids)), context.positions_T, context)
        ids = [*ids, int(decoder.head(hidden[-1:]).argmax())]
    return ids[-count:]


def _draft(head: EagleHead, decoder: Decoder, ids: list[int], count: int) -> list[int]:
    """Return a chain of draft vocabulary ids, drafted as in serving.

    The first draft token runs on the target's states of all tokens but the last, each later one on the state before.
    """
    aux: dict[int, Tensor] = {}
    context = DenseContext(decoder.ops, decoder.rotary, [len(ids) - 1])
    hooks = {layer: lambda hidden, layer=layer: aux.__setitem__(layer, hidden) for layer in head.spec.aux_layer_indices}
    decoder.run(decoder.embed(torch.tensor(ids[:-1])), context.positions_T, context, hooks=hooks)
    states = head.fuse(torch.cat([aux[layer] for layer in head.spec.aux_layer_indices], dim=-1))
    next_ids, drafted = ids[1:], []
    for _ in range(count):
        context = DenseContext(head.ops, head.rotary, [len(states)])
        state = head.run(states, torch.tensor(next_ids), context.positions_T, context)[-1:]
        drafted.append(int(head.head(state).argmax()))
        next_ids = [*next_ids, int(head.target_ids[drafted[-1]])]
        states = torch.cat((states, state))
    return drafted


def test_every_draft_token_of_a_periodic_text_is_accepted(fluent_target: TargetModel, corpus: Corpus, tmp_path: Path) -> None:
    """At all depths of validation text, and in serving: the chain is the target's greedy continuation."""
    task = EagleTask(fluent_target, EagleRecipe(ttt_steps=STEPS, draft_vocab=10), corpus, 0)
    before = _score(task, corpus)
    _train(task, corpus)
    after = _score(task, corpus)
    assert min(after.acceptance) > 0.98
    assert after.accepted_length > 0.98 * STEPS > before.accepted_length
    assert after.mean_loss < 0.05 < before.mean_loss
    task.save(tmp_path, after)
    loaded = load_eagle(tmp_path, fluent_target.decoder)
    assert loaded.config.accuracies == after.accuracies
    text = (PERIOD * 3)[2:15]
    drafted = _draft(loaded.head, fluent_target.decoder, text, STEPS)
    expected = _greedy(fluent_target.decoder, text, STEPS)
    assert expected == (PERIOD * 4)[15 : 15 + STEPS]
    assert loaded.head.target_ids[drafted].tolist() == expected
    assert drafted != expected  # negative control: draft vocabulary ids are not the target's


def _reference_loss(task: EagleTask, ids_BS: Tensor) -> float:
    """Return the mean of 0.8^j · KL over the draft vocabulary, each draft token computed alone."""
    head, decoder = task.head, task.target.decoder
    total, count = 0.0, 0
    for ids_S in ids_BS:
        states = task.target.hidden_states(ids_S[None], head.spec.aux_layer_indices)
        logits_SV = decoder.head(states.last_TE)
        fused = head.fuse(torch.cat([states.aux_hidden_states[layer] for layer in head.spec.aux_layer_indices], dim=-1))
        for position in range(1, len(ids_S)):
            count += 1
            if int(logits_SV[position].argmax()) not in head.target_ids:
                continue
            target_probs = logits_SV[position, head.target_ids].softmax(-1)
            for j in range(min(STEPS, position)):
                anchor = position - 1 - j
                chain = fused[: anchor + 1]
                for _ in range(j + 1):
                    context = DenseContext(head.ops, head.rotary, [len(chain)])
                    chain_ids = ids_S[1 : len(chain) + 1]
                    chain = torch.cat((chain, head.run(chain, chain_ids, context.positions_T, context)[-1:]))
                draft_logp = head.head(chain[-1:])[0].log_softmax(-1)
                total += 0.8**j * float((target_probs * (target_probs.log() - draft_logp)).sum())
    return total / count


@pytest.mark.parametrize("draft_vocab", [None, 40])
def test_the_loss_equals_the_reference_and_trains_the_head_only(draft_vocab: int | None, tiny: Callable[[str], Path]) -> None:
    target = TargetModel.load(tiny("qwen3-gqa"))
    ids_BS = torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(1))
    corpus = Corpus(ids_BS.flatten().int(), ids_BS.flatten().int())
    task = EagleTask(target, EagleRecipe(ttt_steps=STEPS, draft_vocab=draft_vocab), corpus, 3)
    with torch.no_grad():
        expected = _reference_loss(task, ids_BS)
    loss = task.loss(Batch(ids_BS, 0))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)
    loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in task.parameters().values())
    assert all(parameter.grad is None for parameter in target.decoder.parameters())
    assert not any("embedding" in name for name in task.parameters())


def test_the_gradient_is_that_of_the_loss(tiny: Callable[[str], Path]) -> None:
    """By finite differences, through the chain and the keys of the first draft token."""
    target = TargetModel.load(tiny("llama-gqa"))
    ids_BS = torch.randint(101, (1, 8), generator=torch.Generator().manual_seed(2))
    task = EagleTask(target, EagleRecipe(ttt_steps=3), Corpus(ids_BS[0].int(), ids_BS[0].int()), 0)
    batch = Batch(ids_BS, 0)
    task.loss(batch).backward()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in task.parameters().items():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            ends = []
            for sign in (1, -2):  # 0.001 in one direction, then to the other side
                parameter += sign * 1e-3 * direction
                ends.append(float(task.loss(batch)))
            parameter += 1e-3 * direction
        slope = (ends[0] - ends[1]) / 2e-3
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=0.05, abs=0.02), name


def test_the_score_counts_agreement_with_the_targets_greedy_token(tiny: Callable[[str], Path]) -> None:
    """Compared with a count by hand, for a head that is sometimes right."""
    target = TargetModel.load(tiny("llama-gqa"))
    ids_BS = torch.randint(101, (3, 12), generator=torch.Generator().manual_seed(3))
    task = EagleTask(target, EagleRecipe(ttt_steps=3), Corpus(ids_BS.flatten().int(), ids_BS.flatten().int()), 0)
    optimizer = torch.optim.AdamW(list(task.parameters().values()), lr=3e-3)
    for _ in range(25):
        task.loss(Batch(ids_BS, 0)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        score = task.evaluate(Batch(ids_BS, 0))
        chains = task._unroll(ids_BS)[0]
        greedy = target.decoder.head(target.hidden_states(ids_BS).last_TE).argmax(-1).view(3, 12)
    accepted, reached, rank_hits = [0] * 3, [0] * 3, [[0] * 10 for _ in range(3)]
    for sequence in range(3):
        for anchor in range(12 - 3):
            alive = True
            for depth in range(3):
                order = task.head.head(chains[depth, sequence, anchor][None])[0].argsort(descending=True).tolist()
                rank = order.index(int(greedy[sequence, anchor + depth + 1]))
                reached[depth] += alive
                alive = alive and rank == 0
                accepted[depth] += alive
                if rank < 10:
                    rank_hits[depth][rank] += 1
    expected = (tuple(accepted), tuple(reached), tuple(map(tuple, rank_hits)))
    assert (score.accepted, score.reached, score.rank_hits) == expected
    assert score.num_positions == 27
    assert 0 < score.accepted[1] < score.accepted[0] < 27


def test_planted_faults_of_the_loss_are_detected(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the current token instead of the next, and another weight of draft tokens."""
    target = TargetModel.load(tiny("llama-gqa"))
    ids_BS = torch.randint(101, (1, 9), generator=torch.Generator().manual_seed(1))
    task = EagleTask(target, EagleRecipe(ttt_steps=STEPS), Corpus(ids_BS[0].int(), ids_BS[0].int()), 0)
    with torch.no_grad():
        expected = pytest.approx(_reference_loss(task, ids_BS), rel=1e-3)
        assert float(task.loss(Batch(ids_BS, 0))) == expected
        monkeypatch.setattr(eagle_task, "DECAY", 0.9)
        assert float(task.loss(Batch(ids_BS, 0))) != expected
        monkeypatch.undo()
        shifted_ids = eagle_task.shifted_ids
        monkeypatch.setattr(eagle_task, "shifted_ids", lambda ids, offset: shifted_ids(ids, offset - 1))
        assert float(task.loss(Batch(ids_BS, 0))) != expected


@pytest.mark.parametrize("name", ["gpt2", "qwen3-gqa", "llama-llama3", "mistral-window"])
def test_a_head_of_every_family_loads(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """It has the target's heads and rotary embedding, or a default one if the target has none."""
    target = TargetModel.load(tiny(name))
    ids_BS = torch.randint(90, (1, 16), generator=torch.Generator().manual_seed(1))
    task = EagleTask(target, EagleRecipe(ttt_steps=2, intermediate=48), Corpus(ids_BS[0].int(), ids_BS[0].int()), 0)
    task.loss(Batch(ids_BS, 0)).backward()
    with torch.no_grad():
        task.save(tmp_path, task.evaluate(Batch(ids_BS, 0)))
    head = load_eagle(tmp_path, target.decoder).head
    expected, attention = target.spec.layers[0].attention, head.spec.layer.attention
    assert (attention.num_heads, attention.num_kv_heads) == (expected.num_heads, expected.num_kv_heads)
    assert attention.head_dim == expected.head_dim
    assert attention.rotary is not None
    assert expected.rotary in (None, attention.rotary)
    assert attention.window is None
    assert head.spec.layer.mlp.intermediate_size == 48
    for parameter, saved in task.parameters().items():
        assert torch.equal(head.get_parameter(parameter), saved.detach())


def test_initial_weights_come_from_the_seed(tiny: Callable[[str], Path]) -> None:
    target, ids = TargetModel.load(tiny("llama-gqa")), torch.arange(32).int()
    first, again, other = (EagleTask(target, EagleRecipe(), Corpus(ids, ids), seed).parameters() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.format.weight"], other["fc.format.weight"])


def test_init_from_continues_the_training_of_a_head(fluent_target: TargetModel, corpus: Corpus, tmp_path: Path) -> None:
    """Shape and draft vocabulary are those of the initial head. Its folder does not change."""
    recipe = EagleRecipe(ttt_steps=STEPS, draft_vocab=10, aux_layers=(1, 2, 2), norm_before_residual=False)
    first = EagleTask(fluent_target, recipe, corpus, 0)
    _train(first, corpus, steps=15)
    first_score = _score(first, corpus)
    first.save(tmp_path / "first", first_score)
    stored = (tmp_path / "first" / "model.safetensors").read_bytes()
    other_text = Corpus(torch.arange(64).int(), corpus.validation_N)  # would give another draft vocabulary
    second = EagleTask(fluent_target, EagleRecipe(init_from=str(tmp_path / "first"), ttt_steps=STEPS), other_text, 7)
    assert (_score(second, corpus).accepted, second.config.aux_layers) == (first_score.accepted, (1, 2, 2))
    assert _score(second, corpus).mean_loss == pytest.approx(first_score.mean_loss, rel=1e-6)
    _train(second, corpus, steps=60)
    assert _score(second, corpus).mean_loss < first_score.mean_loss / 2
    second.save(tmp_path / "second", _score(second, corpus))
    assert torch.equal(load_eagle(tmp_path / "second", fluent_target.decoder).head.target_ids, first.head.target_ids)
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == stored


def test_an_unusable_init_from_is_refused(fluent_target: TargetModel, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="draft_vocab=10, intermediate=8 and init_from=head"):
        EagleRecipe(init_from="head", draft_vocab=10, intermediate=8)
    with pytest.raises(InvalidOption, match="norm_before_residual=False and init_from=head"):
        EagleRecipe(init_from="head", norm_before_residual=False)
    with pytest.raises(CheckpointError, match="hidden size 256, this model"):
        EagleTask(fluent_target, EagleRecipe(init_from="demo-eagle"), corpus, 0)
    EagleTask(fluent_target, EagleRecipe(), corpus, 0).save(tmp_path, DraftScore.zero())
    tensors = load_file(tmp_path / "model.safetensors")
    rows = torch.randn(fluent_target.spec.vocab_size, fluent_target.spec.hidden_size)
    save_file({**tensors, "embed_tokens.weight": rows}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidOption, match="its own embedding"):
        EagleTask(fluent_target, EagleRecipe(init_from=str(tmp_path)), corpus, 0)


def test_sizes_beyond_the_model_are_refused_with_both_numbers(fluent_target: TargetModel, corpus: Corpus) -> None:
    for recipe, numbers in (
        (EagleRecipe(draft_vocab=102), ("102", "101")),
        (EagleRecipe(aux_layers=(1, 2, 4)), ("1, 2, 4", "1 to 3")),
    ):
        with pytest.raises(InvalidOption) as error:
            EagleTask(fluent_target, recipe, corpus, 0)
        assert all(number in str(error.value) for number in numbers)


def test_every_option_out_of_range_is_named() -> None:
    with pytest.raises(InvalidOption) as error:
        EagleRecipe(ttt_steps=0, draft_vocab=0, aux_layers=(1, 2), intermediate=-1)
    assert all(name in str(error.value) for name in ("ttt_steps=0", "draft_vocab=0", "aux_layers=(1, 2)", "intermediate=-1"))


def test_a_cached_target_has_its_hub_name() -> None:
    assert hub_name(Path("/models/my-model")) == "my-model"
    assert hub_name(Path("/cache/models--some-one--a-model/snapshots/0a1b")) == "some-one/a-model"
