"""An EAGLE-3 head learns what its target would choose, guess after guess, and what is saved guesses so when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import tiny_reference
from torch import Tensor

from hasten.core.errors import CheckpointError, InvalidOption
from hasten.layers.attention_context import DenseContext
from hasten.layers.eagle import EagleHead
from hasten.models.decoder import Decoder
from hasten.models.eagle import load_eagle
from hasten.training.corpus import Batch, Corpus
from hasten.training.draft_score import DraftScore
from hasten.training.draft_vocabulary import frequent_tokens
from hasten.training.eagle import task as eagle_task
from hasten.training.eagle.recipe import EagleRecipe
from hasten.training.eagle.task import EagleTask, published_name
from hasten.training.target_model import TargetModel

PERIOD = [5, 17, 3, 88, 41, 60, 29]
WINDOW, GUESSES = 24, 4


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    """A tiny model that has learned to go on with the text of period 7."""
    folder = tmp_path_factory.mktemp("taught")
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
    return Corpus.split([PERIOD * 60], WINDOW, 0.2, None)


def _train(task: EagleTask, corpus: Corpus, steps: int = 80) -> None:
    optimizer = torch.optim.AdamW(list(task.parameters().values()), lr=3e-3)
    for step in range(steps):
        task.loss(corpus.batch(step, 4, WINDOW, 0)).backward()
        optimizer.step()
        optimizer.zero_grad()


def _score(task: EagleTask, corpus: Corpus) -> DraftScore:
    with torch.no_grad():
        return sum((task.evaluate(batch) for batch in corpus.held_out(4, WINDOW, 8)), DraftScore.nothing())


def _greedy(decoder: Decoder, ids: list[int], count: int) -> list[int]:
    """The target's own continuation, read afresh for every token."""
    for _ in range(count):
        context = DenseContext(decoder.ops, decoder.rotary, [len(ids)])
        hidden = decoder.run(decoder.embed(torch.tensor(ids)), context.positions_T, context)
        ids = [*ids, int(decoder.head(hidden[-1:]).argmax())]
    return ids[-count:]


def _guesses(head: EagleHead, decoder: Decoder, ids: list[int], count: int) -> list[int]:
    """A chain as it is served: the states of all of ``ids`` but the last, then each guess on the one before it. Draft token ids."""
    seen: dict[int, Tensor] = {}
    context = DenseContext(decoder.ops, decoder.rotary, [len(ids) - 1])
    hooks = {layer: lambda hidden, layer=layer: seen.__setitem__(layer, hidden) for layer in head.spec.aux_layer_indices}
    decoder.run(decoder.embed(torch.tensor(ids[:-1])), context.positions_T, context, hooks=hooks)
    chain = head.fuse(torch.cat([seen[layer] for layer in head.spec.aux_layer_indices], dim=-1))
    following, guesses = ids[1:], []
    for _ in range(count):
        context = DenseContext(head.ops, head.rotary, [len(chain)])
        guessed = head.run(chain, torch.tensor(following), context.positions_T, context)[-1:]
        guesses.append(int(head.head(guessed).argmax()))
        following = [*following, int(head.target_ids[guesses[-1]])]
        chain = torch.cat((chain, guessed))
    return guesses


def test_every_guess_of_a_periodic_text_is_right(taught: TargetModel, corpus: Corpus, tmp_path: Path) -> None:
    """At all depths on held-out text, and as it is served: the target's own greedy continuation, by the target's own ids."""
    task = EagleRecipe(ttt_steps=GUESSES, draft_vocab=10).build(taught, corpus, 0)
    before = _score(task, corpus)
    _train(task, corpus)
    after = _score(task, corpus)
    assert min(after.acceptance) > 0.98
    assert after.accepted_length > 0.98 * GUESSES > before.accepted_length
    assert after.mean_loss < 0.05 < before.mean_loss
    task.save(tmp_path, after)
    loaded = load_eagle(tmp_path, taught.decoder)
    assert loaded.config.accuracies == after.accuracies
    text = (PERIOD * 3)[2:15]
    guesses = _guesses(loaded.head, taught.decoder, text, GUESSES)
    wanted = _greedy(taught.decoder, text, GUESSES)
    assert wanted == (PERIOD * 4)[15 : 15 + GUESSES]
    assert loaded.head.target_ids[guesses].tolist() == wanted
    assert guesses != wanted  # negative control: a draft id is not the target's


def _plain_loss(task: EagleTask, ids_BW: Tensor) -> float:
    """Each guess of each anchor by itself: 0.8^j · KL from the target's distribution over the draft tokens, on average."""
    head, decoder = task.head, task.target.decoder
    total, count = 0.0, 0
    for ids_W in ids_BW:
        states = task.target.states(ids_W[None], aux_layer_indices=head.spec.aux_layer_indices)
        logits_WV = decoder.head(states.last_TE)
        fused = head.fuse(torch.cat([states.aux_hidden_states[layer] for layer in head.spec.aux_layer_indices], dim=-1))
        for place in range(1, len(ids_W)):
            count += 1
            if int(logits_WV[place].argmax()) not in head.target_ids:
                continue
            wanted = logits_WV[place, head.target_ids].softmax(-1)
            for j in range(min(GUESSES, place)):
                anchor = place - 1 - j
                chain = fused[: anchor + 1]
                for _ in range(j + 1):
                    context = DenseContext(head.ops, head.rotary, [len(chain)])
                    chain_ids = ids_W[1 : len(chain) + 1]
                    chain = torch.cat((chain, head.run(chain, chain_ids, context.positions_T, context)[-1:]))
                guessed = head.head(chain[-1:])[0].log_softmax(-1)
                total += 0.8**j * float((wanted * (wanted.log() - guessed)).sum())
    return total / count


@pytest.mark.parametrize("draft_vocab", [None, 40])
def test_the_loss_equals_the_plain_formula_and_moves_the_head_alone(draft_vocab: int | None, tiny: Callable[[str], Path]) -> None:
    target = TargetModel.load(tiny("qwen3-gqa"))
    ids_BW = torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(1))
    corpus = Corpus(ids_BW.flatten().int(), ids_BW.flatten().int())
    task = EagleRecipe(ttt_steps=GUESSES, draft_vocab=draft_vocab).build(target, corpus, 3)
    with torch.no_grad():
        expected = _plain_loss(task, ids_BW)
    loss = task.loss(Batch(ids_BW, 0))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)
    loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in task.parameters().values())
    assert all(parameter.grad is None for parameter in target.decoder.parameters())
    assert not any("embedding" in name for name in task.parameters())


def test_the_gradient_is_that_of_the_loss(tiny: Callable[[str], Path]) -> None:
    """By finite differences, through the chain and into the first guess's keys."""
    target = TargetModel.load(tiny("llama-gqa"))
    ids_BW = torch.randint(101, (1, 8), generator=torch.Generator().manual_seed(2))
    task = EagleRecipe(ttt_steps=3).build(target, Corpus(ids_BW[0].int(), ids_BW[0].int()), 0)
    batch = Batch(ids_BW, 0)
    task.loss(batch).backward()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in task.parameters().items():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            ends = []
            for sign in (1, -2):  # one step of 0.002 there, and back to the other side
                parameter += sign * 1e-3 * direction
                ends.append(float(task.loss(batch)))
            parameter += 1e-3 * direction
        slope = (ends[0] - ends[1]) / 2e-3
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=0.05, abs=0.02), name


def test_the_score_counts_agreement_with_the_targets_choice(tiny: Callable[[str], Path]) -> None:
    """Against counting by hand, with a head that is sometimes right: its target is the model that it is measured on."""
    target = TargetModel.load(tiny("llama-gqa"))
    ids_BW = torch.randint(101, (3, 12), generator=torch.Generator().manual_seed(3))
    task = EagleRecipe(ttt_steps=3).build(target, Corpus(ids_BW.flatten().int(), ids_BW.flatten().int()), 0)
    optimizer = torch.optim.AdamW(list(task.parameters().values()), lr=3e-3)
    for _ in range(25):
        task.loss(Batch(ids_BW, 0)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        score = task.evaluate(Batch(ids_BW, 0))
        chains = task._read(ids_BW)[0]
        choices = target.decoder.head(target.states(ids_BW).last_TE).argmax(-1).view(3, 12)
    right, seen, ranks = [0] * 3, [0] * 3, [[0] * 10 for _ in range(3)]
    for window in range(3):
        for anchor in range(12 - 3):
            alive = True
            for depth in range(3):
                order = task.head.head(chains[depth, window, anchor][None])[0].argsort(descending=True).tolist()
                rank = order.index(int(choices[window, anchor + depth + 1]))
                seen[depth] += alive
                alive = alive and rank == 0
                right[depth] += alive
                if rank < 10:
                    ranks[depth][rank] += 1
    assert (score.right, score.seen, score.ranks) == (tuple(right), tuple(seen), tuple(map(tuple, ranks)))
    assert score.num_positions == 27
    assert 0 < score.right[1] < score.right[0] < 27


def test_planted_faults_in_training_are_seen(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the plain formula: the current token instead of the next one, and another weight of later guesses."""
    target = TargetModel.load(tiny("llama-gqa"))
    ids_BW = torch.randint(101, (1, 9), generator=torch.Generator().manual_seed(1))
    task = EagleRecipe(ttt_steps=GUESSES).build(target, Corpus(ids_BW[0].int(), ids_BW[0].int()), 0)
    with torch.no_grad():
        expected = pytest.approx(_plain_loss(task, ids_BW), rel=1e-3)
        assert float(task.loss(Batch(ids_BW, 0))) == expected
        monkeypatch.setattr(eagle_task, "DECAY", 0.9)
        assert float(task.loss(Batch(ids_BW, 0))) != expected
        monkeypatch.undo()
        following = eagle_task.following
        monkeypatch.setattr(eagle_task, "following", lambda ids, count: following(ids, count - 1))
        assert float(task.loss(Batch(ids_BW, 0))) != expected


@pytest.mark.parametrize("name", ["gpt2", "qwen3-gqa", "llama-llama3", "mistral-window"])
def test_a_head_for_every_family(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """It has the target's heads and rotary embedding (its own where the target has none), and loads beside it."""
    target = TargetModel.load(tiny(name))
    ids_BW = torch.randint(90, (1, 16), generator=torch.Generator().manual_seed(1))
    task = EagleRecipe(ttt_steps=2, intermediate=48).build(target, Corpus(ids_BW[0].int(), ids_BW[0].int()), 0)
    task.loss(Batch(ids_BW, 0)).backward()
    with torch.no_grad():
        task.save(tmp_path, task.evaluate(Batch(ids_BW, 0)))
    head = load_eagle(tmp_path, target.decoder).head
    theirs, ours = target.spec.layers[0].attention, head.spec.layer.attention
    assert (ours.num_heads, ours.num_kv_heads, ours.head_dim) == (theirs.num_heads, theirs.num_kv_heads, theirs.head_dim)
    assert ours.rotary is not None
    assert theirs.rotary in (None, ours.rotary)
    assert ours.window is None
    assert head.spec.layer.mlp.intermediate_size == 48
    for parameter, saved in task.parameters().items():
        assert torch.equal(head.get_parameter(parameter), saved.detach())


def test_initial_weights_come_from_the_seed(tiny: Callable[[str], Path]) -> None:
    target, ids = TargetModel.load(tiny("llama-gqa")), torch.arange(32).int()
    first, again, other = (EagleRecipe().build(target, Corpus(ids, ids), seed).parameters() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.format.weight"], other["fc.format.weight"])


def test_a_head_goes_on_from_where_another_training_left_it(taught: TargetModel, corpus: Corpus, tmp_path: Path) -> None:
    """With that one's shape and draft tokens, whatever the text; the folder that it came from stays as it was."""
    first = EagleRecipe(ttt_steps=GUESSES, draft_vocab=10, aux_layers=(1, 2, 2), norm_before_residual=False).build(
        taught, corpus, 0
    )
    _train(first, corpus, steps=15)
    left = _score(first, corpus)
    first.save(tmp_path / "first", left)
    stored = (tmp_path / "first" / "model.safetensors").read_bytes()
    others = Corpus(torch.arange(64).int(), corpus.held_out_N)  # tokens that the draft vocabulary would be taken from, if it were
    further = EagleRecipe(init_from=str(tmp_path / "first"), ttt_steps=GUESSES).build(taught, others, 7)
    assert (_score(further, corpus).right, further.config.aux_layers) == (left.right, (1, 2, 2))
    assert _score(further, corpus).mean_loss == pytest.approx(left.mean_loss, rel=1e-6)
    _train(further, corpus, steps=60)
    assert _score(further, corpus).mean_loss < left.mean_loss / 2
    further.save(tmp_path / "second", _score(further, corpus))
    assert torch.equal(load_eagle(tmp_path / "second", taught.decoder).head.target_ids, first.head.target_ids)
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == stored


def test_a_start_that_cannot_be_gone_on_from_is_refused(
    taught: TargetModel, corpus: Corpus, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidOption, match="settles draft_vocab, intermediate"):
        EagleRecipe(init_from="head", draft_vocab=10, intermediate=8)
    with pytest.raises(InvalidOption, match="settles norm_before_residual"):
        EagleRecipe(init_from="head", norm_before_residual=False)
    with pytest.raises(CheckpointError, match="hidden size 256, this model"):
        EagleRecipe(init_from="demo-eagle").build(taught, corpus, 0)
    EagleRecipe().build(taught, corpus, 0).save(tmp_path, DraftScore.nothing())
    tensors = load_file(tmp_path / "model.safetensors")
    rows = torch.randn(taught.spec.vocab_size, taught.spec.hidden_size)
    save_file({**tensors, "embed_tokens.weight": rows}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidOption, match="embedding of its own"):
        EagleRecipe(init_from=str(tmp_path)).build(taught, corpus, 0)


def test_the_draft_vocabulary_is_the_most_frequent_tokens() -> None:
    ids = torch.tensor([9, 9, 9, 4, 4, 7, 2, 2], dtype=torch.int32)
    assert frequent_tokens(ids, 12, 3).tolist() == [2, 4, 9]
    assert frequent_tokens(ids, 12, 6).tolist() == [0, 1, 2, 4, 7, 9]


def test_what_the_model_does_not_have_is_refused_with_both_numbers(taught: TargetModel, corpus: Corpus) -> None:
    for recipe, numbers in (
        (EagleRecipe(draft_vocab=102), ("102", "101")),
        (EagleRecipe(aux_layers=(1, 2, 4)), ("1, 2, 4", "1 to 3")),
    ):
        with pytest.raises(InvalidOption) as error:
            recipe.build(taught, corpus, 0)
        assert all(number in str(error.value) for number in numbers)


def test_every_option_out_of_range_is_named() -> None:
    with pytest.raises(InvalidOption) as error:
        EagleRecipe(ttt_steps=0, draft_vocab=0, aux_layers=(1, 2), intermediate=-1)
    assert all(name in str(error.value) for name in ("ttt_steps=0", "draft_vocab=0", "aux_layers=(1, 2)", "intermediate=-1"))


def test_a_target_is_named_as_others_find_it() -> None:
    assert published_name(Path("/models/my-model")) == "my-model"
    assert published_name(Path("/cache/models--some-one--a-model/snapshots/0a1b")) == "some-one/a-model"
