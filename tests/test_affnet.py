"""AffNet, its pre-processing, its contenders in Table 1, and SoftHull."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fgvclib.config import load_config
from fgvclib.model.affnet import DEFAULT_SHARPNESS, AffNet, AttentionPreprocessor
from fgvclib.model.geometry import attention_to_box, box_iou, theta_to_box
from fgvclib.study import table1
from fgvclib.study.contenders import FFNN, ResNetS, SoftHull
from fgvclib.study.paper import paper_table
from fgvclib.study.table1 import CONTENDERS

TABLE1 = paper_table(1)


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """In evaluation mode, with an output that depends on the input, as after training."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.1)
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def blobs(count: int, size: int = 14, seed: int = 0) -> torch.Tensor:
    """Maps with two bumps and some noise: (count, 1, size, size)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    maps = 0.15 * rng.random((count, size, size))
    for _ in range(2):
        cx, cy, width = (rng.uniform(low, high, (count, 1, 1)) for low, high in ((0, 1), (0, 1), (0.03, 0.15)))
        maps += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
    return torch.from_numpy(maps).float().unsqueeze(1)


# --- pre-processing


@pytest.mark.parametrize("sharpness", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_preprocessing_equals_numpy(threshold, sharpness):
    attention = torch.randn(5, 1, 14, 14, dtype=torch.float64)
    mask = AttentionPreprocessor(threshold, sharpness).double()(attention).detach().numpy()
    for i, cells in enumerate(attention.numpy()):
        normalised = (cells - cells.min()) / (cells.max() - cells.min())
        above = np.maximum(normalised - np.float32(threshold), 0)
        assert mask[i] == pytest.approx(1 / (1 + np.exp(-sharpness * above)))


def test_preprocessing_learns_the_threshold_alone():
    parameters = dict(AttentionPreprocessor(0.3).named_parameters())
    assert list(parameters) == ["w_tau"]
    assert parameters["w_tau"].numel() == 1 and parameters["w_tau"].item() == pytest.approx(0.3)


def test_background_becomes_one_half_and_foreground_one():
    attention = torch.tensor([[[[0.0, 0.29], [0.32, 1.0]]]])
    mask = AttentionPreprocessor(0.3, 1000.0)(attention)
    assert mask[0, 0, 0].tolist() == [0.5, 0.5]
    assert (mask[0, 0, 1] > 0.999).all()


@pytest.mark.parametrize("sharpness", [DEFAULT_SHARPNESS, 100.0])
def test_gradient_of_the_preprocessing_by_finite_differences(sharpness):
    torch.manual_seed(0)
    module = AttentionPreprocessor(0.3, sharpness).double()
    attention = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    w_tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: functional_call(module, {"w_tau": w}, a), (attention, w_tau))


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_no_nan_for_maps_of_extreme_scale(scale):
    attention = (torch.randn(3, 1, 14, 14) * scale).requires_grad_()
    module = AttentionPreprocessor()
    mask = module(attention)
    mask.sum().backward()
    assert mask.isfinite().all() and attention.grad.isfinite().all() and module.w_tau.grad.isfinite()


def test_constant_map_is_all_background_with_a_finite_gradient():
    attention = torch.full((2, 1, 14, 14), 2.5, requires_grad=True)
    mask = AttentionPreprocessor()(attention)
    mask.sum().backward()
    assert (mask == 0.5).all() and attention.grad.isfinite().all()


# --- AffNet


@pytest.mark.parametrize("estimator", CONTENDERS.values())
def test_first_theta_is_the_identity(estimator):
    theta = estimator()(torch.randn(2, 1, 14, 14))
    assert torch.equal(theta, torch.tensor([[1.0, 1, 0, 0]] * 2))


@pytest.mark.parametrize("preprocess", [True, False])
def test_affnet_equals_numpy(preprocess):
    network = lively(AffNet(7, preprocess, sharpness=10.0).double())
    attention = torch.randn(4, 1, 7, 7, dtype=torch.float64)
    theta = network(attention).detach().numpy()
    state = {name: value.numpy() for name, value in network.state_dict().items()}

    def axis(vector: np.ndarray, name: str) -> np.ndarray:
        hidden = state[f"{name}.0.weight"] @ vector + state[f"{name}.0.bias"]
        spread = np.sqrt(state[f"{name}.1.running_var"] + 1e-5)
        hidden = (hidden - state[f"{name}.1.running_mean"]) / spread * state[f"{name}.1.weight"]
        hidden = np.maximum(hidden + state[f"{name}.1.bias"], 0)
        return state[f"{name}.3.weight"] @ hidden + state[f"{name}.3.bias"]

    for cells, actual in zip(attention.squeeze(1).numpy(), theta, strict=True):
        if preprocess:
            cells = (cells - cells.min()) / (cells.max() - cells.min())
            cells = 1 / (1 + np.exp(-10 * np.maximum(cells - np.float32(0.3), 0)))
        (s_x, t_x), (s_y, t_y) = axis(cells.max(axis=0), "horizontal"), axis(cells.max(axis=1), "vertical")
        assert actual == pytest.approx([s_x, s_y, t_x, t_y])


@pytest.mark.parametrize("dim, kept, moved", [(2, [0, 2], [1, 3]), (3, [1, 3], [0, 2])])
def test_order_of_the_rows_matters_to_the_vertical_axis_alone_and_the_columns_likewise(dim, kept, moved):
    network = lively(AffNet(sharpness=10.0))
    attention = torch.rand(8, 1, 14, 14)
    permuted = attention.index_select(dim, torch.randperm(14))
    before, after = network(attention), network(permuted)
    torch.testing.assert_close(after[:, kept], before[:, kept])
    assert (after[:, moved] - before[:, moved]).abs().min() > 1e-6


@pytest.mark.parametrize("sharpness, silent", [(None, 0), (1000.0, 0.5)])
def test_gradient_reaches_the_map_at_the_default_sharpness(sharpness, silent):
    """Cells above tau of a sharp mask are all 1, and nothing reaches them: no sharpness to train AttNet with."""
    network = lively(AffNet() if sharpness is None else AffNet(sharpness=sharpness))
    sent = table1.sensitivity(network, blobs(200)).mean(dim=(1, 2, 3))
    share = float((sent < sent.mean() / 100).float().mean())
    assert share == 0 if silent == 0 else share > silent


def test_networks_have_the_sharpness_of_the_system_by_default():
    assert AffNet().preprocess.sharpness == AttentionPreprocessor().sharpness == load_config("paper").sharpness == 10


def test_transposed_map_swaps_the_axes_of_equal_subnetworks():
    network = lively(AffNet())
    network.vertical.load_state_dict(network.horizontal.state_dict())
    attention = torch.rand(4, 1, 14, 14)
    torch.testing.assert_close(network(attention.mT), network(attention)[:, [1, 0, 3, 2]])


def test_theta_ignores_scale_and_offset_of_the_map_behind_the_preprocessing():
    network = lively(AffNet().double())
    attention = torch.randn(4, 1, 14, 14, dtype=torch.float64)
    torch.testing.assert_close(network(7 * attention - 3), network(attention))


# --- Table 1


@pytest.mark.parametrize("row", TABLE1.to_dict("records"), ids=lambda row: f"{row['model']}-{row['preprocess']}")
def test_parameter_counts_equal_table_1(row):
    network = CONTENDERS[row["model"]](map_size=14, preprocess=row["preprocess"] == "yes")
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == row["parameters"]


def test_table_1_has_eight_rows_of_these_four_models():
    assert len(TABLE1) == 8 and set(TABLE1["model"]) == set(CONTENDERS)


@pytest.mark.parametrize("estimator", [FFNN, ResNetS, AffNet, SoftHull])
@pytest.mark.parametrize("map_size", [7, 10, 14])
def test_theta_for_maps_of_any_size(estimator, map_size):
    network = estimator(map_size)
    assert network(torch.rand(3, 1, map_size, map_size)).shape == (3, 4)


@pytest.mark.parametrize("estimator", [FFNN, AffNet])
def test_gradient_reaches_every_parameter(estimator):
    network = lively(estimator(14, sharpness=10.0))
    network(blobs(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_resnets_see_the_map_in_all_three_channels():
    network = lively(ResNetS(preprocess=False))
    seen = []
    network.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    attention = torch.rand(2, 1, 14, 14)
    network(attention)
    assert torch.equal(seen[0], torch.cat([attention] * 3, dim=1))


# --- SoftHull


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_softhull_is_the_hull_of_the_mask_at_high_sharpness(threshold):
    attention = blobs(200)
    hull = attention_to_box(attention, threshold)
    assert ((hull[:, 2:] - hull[:, :2]).prod(dim=1) < 0.9).float().mean() > 0.5  # most maps have a box to find
    theta = SoftHull(14, threshold=threshold, sharpness=1e6)(attention)
    assert box_iou(theta_to_box(theta), hull).min() > 0.98


def test_softhull_at_the_sharpness_of_table_1_is_close_on_average():
    attention = blobs(200)
    theta = SoftHull(14, sharpness=table1.SHARPNESS)(attention)
    assert box_iou(theta_to_box(theta), attention_to_box(attention)).mean() > 0.98


def test_softhull_of_a_binary_mask_is_exact_without_preprocessing():
    mask = torch.zeros(1, 1, 10, 10)
    mask[0, 0, 2:5, 3:9] = 1
    box = theta_to_box(SoftHull(10, preprocess=False)(mask))
    assert box[0].tolist() == pytest.approx([0.3, 0.2, 0.9, 0.5], abs=1e-6)


def test_softhull_has_only_the_threshold_to_learn():
    assert [name for name, _ in SoftHull().named_parameters()] == ["preprocess.w_tau"]
    assert not list(SoftHull(preprocess=False).parameters())


def test_gradient_of_softhull_by_finite_differences():
    network = SoftHull(6, sharpness=8.0).double()
    attention = blobs(3, size=6).double().requires_grad_()
    w_tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, w: functional_call(network, {"preprocess.w_tau": w}, a), (attention, w_tau)
    )
    functional_call(network, {"preprocess.w_tau": w_tau}, attention)[:, 0].sum().backward()
    assert w_tau.grad < 0  # a higher threshold makes the box narrower


def test_softhull_of_a_constant_map_is_the_whole_image_the_right_way_round():
    assert SoftHull()(torch.ones(1, 1, 14, 14))[0].tolist() == pytest.approx([1, 1, 0, 0])
