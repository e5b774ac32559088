"""The loss of hidden states equals a loop over layers and positions, and every layer and position counts alike."""

from __future__ import annotations

import pytest
import torch

from hasten.training.distill.hidden_loss import HiddenLoss, matched_layers

CPU = torch.device("cpu")
ROWS = torch.tensor([0, 3, 4, 8])


def random_states(layers, size, tokens=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(tokens, size, generator=generator) for layer in layers}


def normed(state):
    return state.double() / (state.double() ** 2).mean(-1, keepdim=True).sqrt()


def by_hand(loss: HiddenLoss, student, teacher) -> float:
    total = 0.0
    for layer, (teacher_layer, projection) in enumerate(zip(loss.layers, loss.projections_FE, strict=True)):
        for position, row in enumerate(ROWS.tolist()):
            projected = projection.double() @ normed(student[layer][row])
            total += float(((projected - normed(teacher[teacher_layer][position])) ** 2).mean())
    return total / len(loss.layers)


@pytest.mark.parametrize(("size", "teacher_size"), [(6, 10), (10, 6), (6, 6)])
def test_the_loss_equals_a_loop(size, teacher_size):
    loss = HiddenLoss.new(2, size, 4, teacher_size, 7, CPU)
    student, teacher = random_states((0, 1), size), random_states(loss.layers, teacher_size, len(ROWS), 1)
    with torch.no_grad():
        assert float(loss(student, ROWS, teacher)) == pytest.approx(by_hand(loss, student, teacher), rel=1e-5)


def test_projections_of_equal_sizes_start_as_the_identity():
    loss = HiddenLoss.new(2, 6, 2, 6, 7, CPU)
    states = random_states((0, 1), 6)
    with torch.no_grad():
        assert float(loss(states, ROWS, {layer: 3 * rows[ROWS] for layer, rows in states.items()})) < 1e-12


def test_other_projections_depend_on_the_seed_and_the_layer_and_keep_the_size():
    first, again, other = (HiddenLoss.new(2, 60, 2, 90, seed, CPU).projections_FE for seed in (7, 7, 8))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])
    projected = torch.randn(500, 60, generator=torch.Generator().manual_seed(1)) @ first[0].detach().T
    assert float(projected.square().mean()) == pytest.approx(1, rel=0.1)


def test_layers_and_positions_of_large_states_count_like_the_others():
    """Residual streams grow with the layers, and first tokens have states hundreds of times as large as others."""
    loss = HiddenLoss.new(2, 6, 2, 6, 7, CPU)
    student, teacher = random_states((0, 1), 6), random_states((0, 1), 6, len(ROWS), 1)
    scales = torch.tensor([1000.0, 1.0, 1.0, 0.01])[:, None]
    large_student = {0: student[0] * 0.01, 1: student[1] * 30}
    large_teacher = {0: teacher[0], 1: teacher[1] * scales * 30}
    with torch.no_grad():
        torch.testing.assert_close(loss(large_student, ROWS, large_teacher), loss(student, ROWS, teacher))


def test_the_gradient_reaches_the_student_and_the_projections():
    loss = HiddenLoss.new(1, 3, 1, 5, 7, CPU)
    student, teacher = random_states((0,), 3)[0].requires_grad_(), random_states((0,), 5, len(ROWS), 1)[0]
    (projection,) = loss.projections_FE
    inputs = (student, projection)
    actual = torch.autograd.grad(loss({0: student}, ROWS, {0: teacher}), inputs)
    formula = ((normed(student[ROWS]) @ projection.double().T - normed(teacher)) ** 2).mean(-1).sum()
    torch.testing.assert_close(actual, torch.autograd.grad(formula, inputs))


def test_a_state_of_zeros_gives_a_finite_loss():
    loss = HiddenLoss.new(1, 3, 1, 3, 7, CPU)
    value = loss({0: torch.zeros(10, 3)}, ROWS, {0: torch.zeros(len(ROWS), 3)})
    assert float(value.detach()) == 0


def test_the_loss_is_computed_on_the_device_of_the_states():
    meta = torch.device("meta")
    loss = HiddenLoss.new(1, 3, 1, 5, 7, meta)
    value = loss({0: torch.zeros(10, 3, device=meta)}, ROWS.to(meta), {0: torch.zeros(len(ROWS), 5, device=meta)})
    value.backward()
    assert value.device == loss.projections_FE[0].grad.device == meta


@pytest.mark.parametrize(
    ("layers", "teacher_layers", "expected"),
    [
        (4, 8, (1, 3, 5, 7)),
        (6, 12, (1, 3, 5, 7, 9, 11)),
        (8, 8, tuple(range(8))),
        (1, 8, (7,)),
        (3, 8, (2, 4, 7)),
        (4, 2, (0, 0, 1, 1)),
    ],
)
def test_layers_are_matched_evenly_up_to_the_last(layers, teacher_layers, expected):
    assert matched_layers(layers, teacher_layers) == expected


def test_every_match_is_the_nearest_to_an_even_spread():
    for layers in range(1, 14):
        for teacher_layers in range(1, 40):
            matched = matched_layers(layers, teacher_layers)
            assert matched[-1] == teacher_layers - 1 and list(matched) == sorted(matched) and matched[0] >= 0
            for layer, teacher_layer in enumerate(matched):
                depth = (layer + 1) * teacher_layers / layers
                assert abs(teacher_layer + 1 - depth) <= 0.5 or (depth < 0.5 and teacher_layer == 0)
