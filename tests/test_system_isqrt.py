"""iSQRT-COV: covariance by loops, the root against an eigendecomposition, its gradient, resolution and parameters."""

import torch

from fgvclib.model.backbones import create_backbone
from fgvclib.systems.isqrt import ISqrtCov, covariance, matrix_root

BACKBONE = "efficientnet_lite0.pypi"


def random_sigma(d: int = 6) -> torch.Tensor:
    x = torch.randn(3, d, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return covariance(x)


def test_covariance_equals_a_loop_over_cells():
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for photo, sigma in zip(x, covariance(x), strict=True):
        mean = sum(photo[:, cell] for cell in range(5)) / 5
        expected = sum(torch.outer(photo[:, cell] - mean, photo[:, cell] - mean) for cell in range(5)) / 5
        assert torch.allclose(sigma, expected)


def test_the_root_approaches_that_of_an_eigendecomposition():
    sigma = random_sigma()
    values, vectors = torch.linalg.eigh(sigma)
    exact = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
    errors = [(matrix_root(sigma, iterations) - exact).abs().max().item() for iterations in (1, 3, 5, 7, 15)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.05 * exact.abs().max()
    assert errors[-1] < 1e-9


def test_the_gradient_of_the_root_is_that_of_differences():
    x = torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: matrix_root(covariance(x)), x)


def test_the_root_is_in_single_precision_under_autocast(monkeypatch):
    torch.manual_seed(0)
    system = ISqrtCov(4, BACKBONE, 64, pretrained=False)
    seen = []
    monkeypatch.setattr("fgvclib.systems.isqrt.matrix_root", lambda sigma: seen.append(sigma.dtype) or sigma @ sigma)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        system(torch.randn(2, 3, 64, 64))
    assert seen == [torch.float32]


def test_the_last_stage_keeps_its_resolution_and_its_kernels():
    system = ISqrtCov(4, BACKBONE, 128, pretrained=False)
    assert system.features(torch.randn(1, 3, 128, 128)).shape == (1, 1280, 8, 8)
    convolutions = [layer for layer in system.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert {layer.dilation for layer in convolutions} == {(1, 1)}


def test_parameters():
    for crop_size, d in ((128, 64), (256, 256)):
        system = ISqrtCov(25, BACKBONE, crop_size, pretrained=False)
        own = sum(value.numel() for value in system.parameters())
        backbone = sum(value.numel() for value in create_backbone(BACKBONE, pretrained=False).parameters())
        assert own - backbone == 1280 * d + 2 * d + 25 * d * (d + 1) // 2 + 25
