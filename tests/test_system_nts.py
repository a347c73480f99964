"""NTS-Net: its windows, its rank loss and what that reaches, against loops."""

import math

import pytest
import torch

from fgvclib.systems.nts import NTS, anchors, rank_loss

BACKBONE = "efficientnet_lite0.pypi"
CLASSES, SIZE = 3, 224


@pytest.fixture
def system():
    torch.manual_seed(0)
    return NTS(CLASSES, BACKBONE, SIZE, pretrained=False)


@pytest.fixture
def batch():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("size", "count"), [(448, 14**2 * 6 + 7**2 * 6 + 4**2 * 9), (224, 7**2 * 6 + 4**2 * 6 + 2**2 * 9)]
)
def test_windows_are_those_of_the_paper(size, count):
    found = anchors(size).tolist()
    assert len(found) == count and count in (1614, 426)
    expected = []
    for level, (side, powers) in enumerate([(48, (1, 2)), (96, (1, 2)), (192, (0, 1, 2))]):
        stride = 32 * 2**level
        cells = math.ceil(size / stride)
        for row in range(cells):
            for column in range(cells):
                for power in powers:
                    for ratio in (0.667, 1, 1.5):
                        area = (side * 2 ** (power / 3) * size / 448) ** 2
                        width = math.sqrt(area / ratio)
                        x, y, height = (column + 0.5) * stride, (row + 0.5) * stride, area / width
                        expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-3)


@pytest.mark.parametrize(("size", "channels"), [(224, 1280), (256, 1280), (448, 1280)])
def test_scores_are_as_many_as_windows_and_in_their_order(size, channels, system):
    cells = size // 32
    features = torch.zeros(1, channels, cells, cells)
    plain = system.navigator(features)
    assert plain.shape == (1, len(anchors(size)))
    features[:, :, 2, 5] = 3  # what changes most on the finest level is at this cell
    change = (system.navigator(features) - plain).abs()[0, : cells**2 * 6].view(cells, cells, 6).sum(dim=2)
    assert divmod(change.argmax().item(), cells) in {(i, j) for i in (1, 2, 3) for j in (4, 5, 6)}
    assert not change[4:].any() and not change[:, :4].any()
    first = anchors(size)[:6]
    assert torch.allclose((first[:, :2] + first[:, 2:]) / 2, torch.tensor(16.0))  # all at the first cell


def test_rank_loss_is_the_double_loop():
    generator = torch.Generator().manual_seed(2)
    scores, errors = torch.randn(3, 6, generator=generator), torch.rand(3, 6, generator=generator)
    total = 0.0
    for s, e in zip(scores.tolist(), errors.tolist(), strict=True):
        for i in range(6):
            for j in range(6):
                if e[j] > e[i]:
                    total += max(0, 1 - s[i] + s[j])
    assert rank_loss(scores, errors).item() == pytest.approx(total / 3, rel=1e-5)


def test_rank_loss_vanishes_where_the_order_is_right_by_a_margin():
    errors = torch.tensor([[0.1, 0.5, 2.0]])
    assert rank_loss(torch.tensor([[2.0, 1.0, 0.0]]), errors) == 0
    assert rank_loss(torch.tensor([[0.0, 1.0, 2.0]]), errors) == 2 + 3 + 2


def test_rank_loss_reaches_the_navigator_alone(system, batch):
    terms = system.train().loss(system(*batch), batch[1])
    terms["rank"].backward(retain_graph=True)
    moved = {name.split(".")[0] for name, p in system.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"navigator"}
    system.zero_grad()
    (terms["total"] - terms["rank"]).backward()
    assert not any(p.grad is not None and p.grad.any() for p in system.navigator.parameters())


def test_answer_joins_the_photo_and_its_four_best_windows(system, batch, monkeypatch):
    system.eval()
    boxes = system.anchors
    scores = torch.rand(2, len(boxes), generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(system.navigator, "forward", lambda features: scores)
    with torch.no_grad():
        found = system.predict(batch[0]).log_probabilities
        for photo, row in zip(range(2), scores.tolist(), strict=True):
            kept = []
            for i in sorted(range(len(row)), key=lambda i: -row[i]):
                low = torch.maximum(boxes[i, :2], boxes[kept, :2])
                shared = (torch.minimum(boxes[i, 2:], boxes[kept, 2:]) - low).clamp_min(0).prod(dim=1)
                areas = [(boxes[k, 2:] - boxes[k, :2]).prod(dim=-1) for k in (i, kept)]
                if not (shared / (areas[0] + areas[1] - shared) > 0.25).any():
                    kept.append(i)
            image = batch[0][photo : photo + 1]
            features = [system.features(image).mean(dim=(2, 3))]
            for i in kept[:4]:
                x1, y1, x2, y2 = boxes[i].tolist()
                theta = torch.tensor(
                    [[(x2 - x1) / SIZE, 0, (x1 + x2) / SIZE - 1], [0, (y2 - y1) / SIZE, (y1 + y2) / SIZE - 1]]
                )
                grid = torch.nn.functional.affine_grid(theta[None], (1, 3, 112, 112), align_corners=False)
                view = torch.nn.functional.grid_sample(image, grid, align_corners=False)
                features.append(system.features(view).mean(dim=(2, 3)))
            expected = system.together(torch.cat(features, dim=1)).log_softmax(dim=1)
            assert torch.allclose(found[photo], expected[0], atol=1e-4)


def test_small_crops_are_refused():
    with pytest.raises(ValueError, match="crop_size is 128, but NTS needs 224 pixels or more; raise it"):
        NTS(CLASSES, BACKBONE, 128, pretrained=False)


def test_backbone_of_another_stride_is_refused():
    """A vision transformer's patches of 16 pixels would give more scores than there are windows."""
    with pytest.raises(ValueError, match="nts looks at features of stride 32, but those of vit_tiny_patch16_224 have"):
        NTS(CLASSES, "vit_tiny_patch16_224", 224, pretrained=False)


def test_parameters_beyond_the_backbone(system):
    own = sum(p.numel() for p in system.parameters()) - sum(p.numel() for p in system.backbone.parameters())
    navigator = (1280 * 128 * 9 + 128) + 2 * (128 * 128 * 9 + 128) + 2 * (128 * 6 + 6) + (128 * 9 + 9)
    assert own == navigator + (5 * 1280 * CLASSES + CLASSES) + 2 * (1280 * CLASSES + CLASSES)
