"""The objective against loops and finite differences; the k-max pooling against sorting."""

from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fgvclib.model.classifier import GlobalKMaxPool2d
from fgvclib.model.gradients import clip_gradient, scale_gradient
from fgvclib.model.losses import EmbeddingLoss, EndToEndLoss, localisation_loss

CLASSES, DIM = 7, 5
BATCHES = {
    "several per class": [0, 1, 1, 2, 2, 2, 4],
    "one per class": [6, 0, 3, 1],
    "all of one class": [5, 5, 5],
    "a single sample": [2],
}


class Output(NamedTuple):
    logits: Tensor
    embedding: Tensor
    attention: Tensor | None
    theta: Tensor


def loop_loss(features, labels, centres, alpha=0.5, margin=0.75, gamma=16.0, max_pairs=256):
    """The embedding loss one sample and one pair at a time → loss and centres after the update."""
    features = [f / np.linalg.norm(f) for f in features]
    centres = {k: c.copy() for k, c in enumerate(centres)}
    for k in set(labels):
        own = [f for f, label in zip(features, labels, strict=True) if label == k]
        moved = centres[k] - alpha * sum(centres[k] - f for f in own) / (len(own) + 1)
        centres[k] = moved / np.linalg.norm(moved)
    intra = np.mean([0.5 * np.sum((f - centres[k]) ** 2) for f, k in zip(features, labels, strict=True)])
    inter = 0.0
    batch_classes = sorted(set(labels))
    for i, first in enumerate(batch_classes):
        for second in batch_classes[i + 1 :]:
            distance = np.sum((centres[first] - centres[second]) ** 2)
            inter += max(0.0, margin - distance) ** 2 / 4
    return intra + gamma * inter / max_pairs, np.array([centres[k] for k in sorted(centres)])


def close_features(count: int, seed: int = 0, spread: float = 0.4) -> np.ndarray:
    """Features in a cone, so that their centres are within the margin of each other."""
    return np.ones(DIM) + spread * np.random.default_rng(seed).normal(size=(count, DIM))


# --- scale_gradient


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 2.5])
def test_scale_gradient_leaves_the_value_and_scales_the_gradient(beta):
    x = torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 3)
    y = scale_gradient(x, beta)
    assert torch.equal(y, x)
    (y * weights).sum().backward()
    torch.testing.assert_close(x.grad, beta * weights)


def test_scale_gradient_acts_on_its_own_branch_alone():
    """f(x) through the scaling and g(x) beside it: beta f' + g' by finite differences."""
    x, step = torch.tensor(0.7, dtype=torch.float64), 1e-6
    variable = x.clone().requires_grad_()
    (scale_gradient(variable.sin(), 0.25).exp() + variable**3).backward()

    def slope(f):
        return (f(x + step) - f(x - step)) / (2 * step)

    expected = 0.25 * slope(lambda v: v.sin().exp()) + slope(lambda v: v**3)
    assert variable.grad.item() == pytest.approx(expected.item(), rel=1e-8)


def test_scales_in_a_row_multiply():
    x = torch.ones(3, requires_grad=True)
    scale_gradient(scale_gradient(x, 0.5), 0.2).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 0.1))


# --- clip_gradient


def test_clip_gradient_shortens_the_gradient_of_every_samples_own_loss():
    x = torch.randn(3, 2, requires_grad=True)
    y = clip_gradient(x, 2.0)
    assert torch.equal(y, x)
    own = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]])  # norms 5, 1 and 0; the loss is the mean over 3
    (y * own).sum(dim=1).mean().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.2, 1.6], [0.6, 0.8], [0.0, 0.0]]) / 3)


def test_limit_of_zero_lets_nothing_through_and_stays_finite():
    x = torch.randn(2, 2, requires_grad=True)
    (clip_gradient(x, 0.0) * torch.tensor([[3.0, 4.0], [0.0, 0.0]])).sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 2))


def test_no_limit_leaves_the_gradient_alone():
    x = torch.randn(3, 2, requires_grad=True)
    (clip_gradient(x, None) * 1e6).sum().backward()
    assert (x.grad == 1e6).all()


# --- embedding loss


@pytest.mark.parametrize("gamma", [0.0, 16.0])
@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
def test_embedding_loss_equals_the_loop_over_several_batches(labels, gamma):
    criterion = EmbeddingLoss(CLASSES, DIM, gamma=gamma).double()
    centres = np.zeros((CLASSES, DIM))
    for seed in range(4):  # the centres of one batch are the start of the next
        features = close_features(len(labels), seed)
        expected, centres = loop_loss(features, labels, centres, gamma=gamma)
        loss = criterion(torch.from_numpy(features), torch.tensor(labels))
        assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert criterion.centres.numpy() == pytest.approx(centres)


def test_embedding_loss_with_other_constants_equals_the_loop():
    constants = {"alpha": 0.2, "margin": 0.4, "gamma": 3.0, "max_pairs": 50}
    criterion = EmbeddingLoss(CLASSES, DIM, **constants).double()
    labels, features = [0, 1, 2, 3, 3], close_features(5, spread=0.2)
    start = close_features(CLASSES, seed=9)
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    criterion.centres.copy_(torch.from_numpy(start))
    expected, _ = loop_loss(features, labels, start, **constants)
    assert criterion(torch.from_numpy(features), torch.tensor(labels)).item() == pytest.approx(expected)


@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
def test_gradient_of_the_embedding_loss_counts_that_the_centres_move(labels):
    criterion = EmbeddingLoss(CLASSES, DIM).double()
    criterion(torch.from_numpy(close_features(14)), torch.arange(14) % CLASSES)  # centres away from zero
    features = torch.from_numpy(close_features(len(labels), seed=3)).requires_grad_()
    labels, step = torch.tensor(labels), 1e-6

    def loss(values: Tensor) -> Tensor:
        return deepcopy(criterion)(values, labels)  # a copy, whose centres may move

    loss(features).backward()
    for index in np.ndindex(*features.shape):
        shift = torch.zeros_like(features)
        shift[index] = step
        with torch.no_grad():
            slope = (loss(features + shift) - loss(features - shift)) / (2 * step)
        assert features.grad[index].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-8)


def test_at_most_max_pairs_are_drawn():
    """40 equal features of 40 classes: 780 pairs at distance 0, of which 256 count margin^2 / 4 each."""
    loss = EmbeddingLoss(40, DIM)(torch.ones(40, DIM), torch.arange(40))
    assert loss.item() == pytest.approx(16 * 0.75**2 / 4)


def test_drawn_pairs_are_distinct_and_random():
    """With room for 5 of 6 pairs the sum is that of all, less one of the six."""
    features = torch.from_numpy(close_features(4))
    shares = []
    for i in range(4):
        for j in range(i):
            a, b = (features[k] / features[k].norm() for k in (i, j))
            shares.append(max(0, 0.75 - (a - b).square().sum().item()) ** 2 / 4)
    assert min(shares) > 0
    missing = set()
    for seed in range(20):
        torch.manual_seed(seed)
        loss = EmbeddingLoss(4, DIM, gamma=1.0, max_pairs=5).double()(features, torch.arange(4)).item()
        left_out = [i for i, share in enumerate(shares) if abs(loss - (sum(shares) - share) / 5) < 1e-9]
        assert len(left_out) == 1
        missing.add(left_out[0])
    assert len(missing) > 1


def test_classes_further_apart_than_the_margin_add_nothing():
    criterion = EmbeddingLoss(3, 3)
    assert criterion(torch.eye(3), torch.arange(3)).item() == pytest.approx(0, abs=1e-6)


def test_length_of_the_features_does_not_matter():
    features, labels = torch.from_numpy(close_features(6)), torch.tensor([0, 0, 1, 1, 2, 2])
    losses = [EmbeddingLoss(3, DIM).double()(scale * features, labels).item() for scale in (1, 100)]
    assert losses[0] == pytest.approx(losses[1])


def test_centres_seen_stay_unit_vectors_and_the_others_at_their_start():
    criterion = EmbeddingLoss(CLASSES, DIM)
    for seed in range(5):
        criterion(torch.randn(8, DIM, generator=torch.Generator().manual_seed(seed)), torch.arange(8) % 4)
    torch.testing.assert_close(criterion.centres[:4].norm(dim=1), torch.ones(4))
    assert torch.equal(criterion.centres[4:], torch.zeros(CLASSES - 4, DIM))


def test_evaluation_mode_reads_the_centres_and_does_not_move_them():
    criterion = EmbeddingLoss(3, 3).eval()
    criterion.centres.copy_(torch.eye(3))
    before = criterion.centres.clone()
    loss = criterion(torch.eye(3)[[1, 0]], torch.tensor([0, 1]))  # each on the other's centre: squared distance 2
    assert torch.equal(criterion.centres, before)
    assert loss.item() == pytest.approx(0.5 * 2)


def test_centres_are_saved_and_carry_no_gradient():
    criterion = EmbeddingLoss(CLASSES, DIM)
    criterion(torch.randn(4, DIM, requires_grad=True), torch.arange(4)).backward()
    assert "centres" in criterion.state_dict() and not criterion.centres.requires_grad
    assert not list(criterion.parameters())


# --- the whole objective


@pytest.fixture
def output():
    torch.manual_seed(0)
    return Output(torch.randn(4, CLASSES), torch.randn(4, DIM), 2 * torch.randn(4, 1, 6, 6), torch.randn(4, 4))


LABELS = torch.tensor([0, 3, 3, 1])


def loop_smooth_l1(a: np.ndarray, b: np.ndarray) -> float:
    distances = [abs(x - y) for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)]
    return float(np.mean([0.5 * d * d if d < 1 else d - 0.5 for d in distances]))


def test_every_term_equals_its_formula(output):
    teacher_map = torch.zeros(4, 1, 6, 6)
    teacher_map[:, 0, 1:3, 2:6] = 1  # columns 2..5, rows 1..2 of 6: box [1/3, 1/6, 1, 1/2]
    theta_tau = np.tile([2 / 3, 1 / 3, 1 / 3, -1 / 3], (4, 1))
    terms = EndToEndLoss(EmbeddingLoss(CLASSES, DIM), 2.0, 16.0, 5.0)(output, LABELS, teacher_map)
    logits = output.logits.numpy()
    log_sums = np.log(np.exp(logits).sum(axis=1))
    expected_embedding, _ = loop_loss(output.embedding.numpy(), LABELS.tolist(), np.zeros((CLASSES, DIM)))
    assert {name: float(value) for name, value in terms.items() if name != "total"} == pytest.approx(
        {
            "cross_entropy": np.mean(log_sums - logits[range(4), LABELS]),
            "embedding": 2 * expected_embedding,
            "attention": 16 * loop_smooth_l1(output.attention.numpy(), teacher_map.numpy()),
            "affine": 5 * loop_smooth_l1(output.theta.numpy(), theta_tau),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("lambda_att, lambda_aff", [(16.0, 16.0), (16.0, 0.0), (0.0, 16.0), (0.0, 0.0)])
def test_total_is_the_sum_of_the_terms(output, lambda_att, lambda_aff):
    criterion = EndToEndLoss(EmbeddingLoss(CLASSES, DIM), 2.0, lambda_att, lambda_aff)
    assert criterion.needs_teacher == (lambda_att + lambda_aff > 0)
    terms = criterion(output, LABELS, torch.randn(4, 1, 6, 6))
    total = terms.pop("total").item()
    assert total == pytest.approx(sum(term.item() for term in terms.values()))


@pytest.mark.parametrize("lambdas", [{"lambda_att": 0.0}, {"lambda_aff": 0.0}, {}])
def test_missing_teacher_map_is_named(output, lambdas):
    with pytest.raises(ValueError, match="no teacher map"):
        EndToEndLoss(EmbeddingLoss(CLASSES, DIM), **lambdas)(output, LABELS)


def test_without_local_losses_neither_teacher_nor_attention_is_needed(output):
    criterion = EndToEndLoss(EmbeddingLoss(CLASSES, DIM), lambda_att=0.0, lambda_aff=0.0)
    assert set(criterion(output._replace(attention=None), LABELS)) == {"cross_entropy", "embedding", "total"}


def test_localisation_loss_is_the_two_local_terms(output):
    teacher_map = torch.rand(4, 1, 6, 6)
    terms = EndToEndLoss(EmbeddingLoss(CLASSES, DIM), 2.0, 7.0, 5.0, 0.4)(output, LABELS, teacher_map)
    found = localisation_loss(output.attention, output.theta, teacher_map, 7.0, 5.0, 0.4)
    assert found == (terms["attention"], terms["affine"])


def test_embedding_loss_that_is_off_moves_no_centre_and_needs_no_embedding(output):
    criterion = EndToEndLoss(EmbeddingLoss(CLASSES, DIM), 0.0, 0.0, 0.0)
    assert criterion(output, LABELS)["embedding"] == 0 and not criterion.embedding_loss.centres.any()
    logits_alone = criterion(output._replace(embedding=None), LABELS)
    assert logits_alone["total"] == logits_alone["cross_entropy"] > 0


def test_classifier_without_embedding_is_named(output):
    with pytest.raises(ValueError, match="gives logits alone; set lambda_emb = 0"):
        EndToEndLoss(EmbeddingLoss(CLASSES, DIM), 2.0, 0.0, 0.0)(output._replace(embedding=None), LABELS)


def test_threshold_decides_the_target_box(output):
    teacher_map = torch.zeros(4, 1, 6, 6)
    teacher_map[:, 0, 2, 2] = 1
    teacher_map[:, 0, 0, 0] = 0.5
    exact = torch.tensor([[1 / 6, 1 / 6, -1 / 6, -1 / 6]] * 4)  # the box of cell (2, 2) alone
    for threshold, reached in ((0.6, True), (0.4, False)):
        criterion = EndToEndLoss(EmbeddingLoss(CLASSES, DIM), threshold=threshold)
        loss = criterion(output._replace(theta=exact), LABELS, teacher_map)["affine"].item()
        assert (loss < 1e-9) == reached


# --- pooling


@pytest.mark.parametrize("k", [1, 2, 4, 12, 50])
def test_kmax_pooling_is_the_mean_of_the_largest_by_sorting(k):
    features = np.random.default_rng(0).normal(size=(2, 5, 3, 4))
    expected = [[sorted(cells.ravel())[-k:] for cells in image] for image in features]
    expected = [[sum(cells) / len(cells) for cells in image] for image in expected]
    assert GlobalKMaxPool2d(k)(torch.from_numpy(features)).numpy() == pytest.approx(np.array(expected))


def test_kmax_pooling_sends_the_gradient_to_the_largest_cells_alone():
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    GlobalKMaxPool2d(4)(features).sum().backward()
    fourth = features.detach().flatten(2).sort(dim=2).values[..., -4].view(2, 3, 1, 1)
    assert torch.equal(features.grad, (features.detach() >= fourth) * 0.25)
