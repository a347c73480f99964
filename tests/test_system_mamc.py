"""OSME-MAMC: the metric loss against three loops, the gates by hand, the parameters."""

import math

import torch
import torch.nn.functional as F

from fgvclib.model.backbones import create_backbone
from fgvclib.systems.mamc import MAMC, metric_loss

BACKBONE = "efficientnet_lite0.pypi"


def by_loops(features, labels) -> float:
    f = {(b, p): features[b, p] for b in range(len(labels)) for p in range(features.shape[1])}
    total = 0.0
    for anchor, a in f.items():
        sets = {"same": [], "gate": [], "class": [], "neither": []}
        for other, value in f.items():
            if other != anchor:
                same_class, same_gate = labels[other[0]] == labels[anchor[0]], other[1] == anchor[1]
                kind = ("same" if same_gate else "class") if same_class else ("gate" if same_gate else "neither")
                sets[kind].append(float(a @ value))
        pairs = [
            (sets["same"], sets["gate"] + sets["class"] + sets["neither"]),
            (sets["gate"], sets["neither"]),
            (sets["class"], sets["neither"]),
        ]
        for positives, negatives in pairs:
            total += sum(math.log(1 + sum(math.exp(n - p) for n in negatives)) for p in positives)
    return total / len(f)


def test_metric_loss_equals_loops():
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(6, 2, 5, dtype=torch.float64, generator=generator), dim=2)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    assert math.isclose(metric_loss(features, labels).item(), by_loops(features, labels.tolist()), rel_tol=1e-9)


def test_a_batch_of_one_class_has_a_finite_gradient():
    features = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    metric_loss(features, torch.zeros(4, dtype=torch.long)).backward()
    assert features.grad.isfinite().all() and features.grad.any()


def test_gates_weight_the_channels_of_every_cell_before_their_mean():
    torch.manual_seed(0)
    system = MAMC(4, BACKBONE, 64, pretrained=False).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = system.features(images)
        looks = system(images)
        for p in range(2):
            first, _, second, _ = system.gates[p]
            weights = torch.sigmoid(second(first(maps.mean(dim=(2, 3))).clamp_min(0)))
            expected = system.embeddings[p]((weights[:, :, None, None] * maps).mean(dim=(2, 3)))
            assert torch.allclose(looks.parts["features"][:, p], expected, atol=1e-5)
        assert torch.allclose(looks.logits["main"], system.output(looks.parts["features"].sum(dim=1)))


def test_parameters():
    own = sum(value.numel() for value in MAMC(25, BACKBONE, 128, pretrained=False).parameters())
    backbone = sum(value.numel() for value in create_backbone(BACKBONE, pretrained=False).parameters())
    gate = 1280 * 80 + 80 + 80 * 1280 + 1280
    assert own - backbone == 2 * (gate + 1280 * 256 + 256) + 256 * 25 + 25
