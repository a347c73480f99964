"""The whole system: the gradients of equations 3-4 and 8-10, the teacher pass, and what each row of Table 2 trains."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import timm
import torch

from fgvclib.model.backbones import create_backbone
from fgvclib.model.geometry import crop
from fgvclib.model.losses import EmbeddingLoss, EndToEndLoss
from fgvclib.model.system import EndToEndModel, ModelOutput, build_model
from fgvclib.model.teacher import Teacher, _skeleton
from fgvclib.study.paper import paper_table
from fgvclib.training.loop import train

TABLE2 = paper_table(2).to_dict("records")
IDENTITY = torch.tensor([1.0, 1.0, 0.0, 0.0])
CLASSIFICATION = ("cross_entropy", "embedding")
LABELS = torch.tensor([2, 0])
BETAS = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.3, 1.0), (0.5, 2.0)]


def row_config(config, row: dict):
    """`config` with the values of a row of Table 2."""
    weight = 16.0 if row["local_losses"] == "yes" else 0.0
    betas = {"beta_att": float(row["beta_att"]), "beta_aff": float(row["beta_aff"])}
    return replace(config, lambda_att=weight, lambda_aff=weight, **betas)


def named(row: dict) -> str:
    return row["description"]


def with_live_affnet(model):
    """AffNet as after some training: theta depends on the map."""
    torch.manual_seed(5)
    for axis in (model.affnet.horizontal, model.affnet.vertical):
        torch.nn.init.normal_(axis[-1].weight, std=0.05)
    with torch.no_grad():
        model.affnet.horizontal[-1].bias.copy_(torch.tensor([0.7, 0.13]))
        model.affnet.vertical[-1].bias.copy_(torch.tensor([0.6, -0.11]))
    return model


@pytest.fixture(scope="module")
def small(tiny):
    """ResNets with random weights: quick in float64, in which the grouped convolutions of EfficientNet are slow."""
    backbones = {"backbone": "resnet10t", "attnet_backbone": "resnet10t"}
    return replace(tiny, **backbones, crop_size=48, kmax=2, theta_gradient_limit=None)


# --- equations 3, 4 and 8 to 10


class Differences:
    """Slopes of every loss term at A and theta, by central differences in float64."""

    step = 1e-8  # small, because every ReLU and every pixel border is a kink

    def __init__(self, config):
        torch.manual_seed(0)
        self.model = with_live_affnet(build_model(config, 3, pretrained=False)).double().eval()
        self.criterion = EndToEndLoss(EmbeddingLoss(3, config.embedding_dim), 2.0, 16.0, 16.0).double()
        self.criterion(self.random_output(), torch.arange(3), torch.rand(3, 1, 14, 14))  # centres away from zero
        self.images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        self.teacher_map = torch.rand(2, 1, 14, 14, dtype=torch.float64) ** 4
        self.directions = torch.randn(5, 2, 1, 14, 14, dtype=torch.float64)
        with torch.no_grad():
            self.attention, self.theta = self.model.localisation(self.images)
            at_theta = [self.slopes(partial(self.from_theta, self.attention), self.theta, d) for d in self.units()]
            at_attention = [self.slopes(self.from_attention, self.attention, d) for d in self.directions]
        self.at_theta = {name: torch.tensor([row[name] for row in at_theta]).view(2, 4) for name in at_theta[0]}
        self.at_attention = {name: torch.tensor([row[name] for row in at_attention]) for name in at_attention[0]}

    def random_output(self):
        embedding = torch.randn(3, self.criterion.embedding_loss.centres.shape[1], dtype=torch.float64)
        return ModelOutput(torch.randn(3, 3), embedding, torch.rand(3, 1, 14, 14), torch.rand(3, 4), None)

    def units(self):
        return torch.eye(8, dtype=torch.float64).view(8, 2, 4)

    def from_theta(self, attention, theta):
        """Loss terms where theta is given: the crop and the classifier, without AttNet and AffNet."""
        logits, embedding = self.model.classifier(crop(self.images, theta, self.model.crop_size))
        return self.terms(ModelOutput(logits, embedding, attention, theta, None))

    def from_attention(self, attention):
        return self.from_theta(attention, self.model.affnet(attention))

    def terms(self, output):
        return deepcopy(self.criterion)(output, LABELS, self.teacher_map)  # a copy: the centres move

    def slopes(self, function, point, direction):
        high, low = function(point + self.step * direction), function(point - self.step * direction)
        return {name: ((high[name] - low[name]) / (2 * self.step)).item() for name in high}

    def gradients(self, beta_att: float, beta_aff: float):
        """dL/dA and dL/dtheta as the model computes them."""
        self.model.beta_att, self.model.beta_aff = beta_att, beta_aff
        output = self.model(self.images)
        output.attention.retain_grad()
        output.theta.retain_grad()
        self.terms(output)["total"].backward()
        self.model.zero_grad()
        return output.attention.grad, output.theta.grad


@pytest.fixture(scope="module")
def differences(small):
    return Differences(small)


def test_every_term_has_a_slope_that_the_equations_can_be_seen_in(differences):
    for name in (*CLASSIFICATION, "affine"):
        assert differences.at_theta[name].abs().max() > 1e-3, name
        assert differences.at_attention[name].abs().max() > 1e-3, name
    assert differences.at_attention["attention"].abs().max() > 1e-3
    assert differences.at_theta["attention"].abs().max() == 0  # L_att does not depend on theta


@pytest.mark.parametrize("beta_att, beta_aff", BETAS)
def test_gradient_at_theta_is_equation_9(differences, beta_att, beta_aff):
    """dL/dtheta = beta_aff d(L_CE + lambda L_emb)/dtheta + lambda_aff dSL1(theta, theta_tau)/dtheta."""
    slopes = differences.at_theta
    expected = beta_aff * (slopes["cross_entropy"] + slopes["embedding"]) + slopes["affine"]
    _, gradient = differences.gradients(beta_att, beta_aff)
    assert gradient.numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("beta_att, beta_aff", BETAS)
def test_gradient_at_the_attention_map_is_equation_4(differences, beta_att, beta_aff):
    """dL/dA = beta_att d(L_CE + lambda L_emb + L_aff)/dA + lambda_att dSL1(A, M)/dA.

    The classification losses come to A through theta, where equation 8 has scaled them already.
    """
    slopes = differences.at_attention
    rest = beta_aff * (slopes["cross_entropy"] + slopes["embedding"]) + slopes["affine"]
    gradient, _ = differences.gradients(beta_att, beta_aff)
    along = (gradient * differences.directions).sum(dim=(1, 2, 3, 4))
    # theta's own share of L_att is 0, so that what remains of slopes["attention"] is the local loss
    assert along.numpy() == pytest.approx((beta_att * rest + slopes["attention"]).numpy(), rel=1e-4, abs=1e-5)


def test_limit_shortens_each_photos_classification_gradient_into_theta_alone(differences):
    """Of the photo's own loss, before beta_aff scales it; L_aff is not limited."""
    slopes = differences.at_theta
    classification = slopes["cross_entropy"] + slopes["embedding"]
    own_norms = 2 * classification.norm(dim=1)  # of the sum, where the loss is the mean over two photos
    limit = own_norms.mean().item()  # one photo above it, one below
    differences.model.theta_gradient_limit = limit
    _, gradient = differences.gradients(1.0, 0.5)
    differences.model.theta_gradient_limit = None
    shares = (limit / own_norms).clamp(max=1).unsqueeze(1)
    assert shares.min() < 1 == shares.max()
    expected = 0.5 * shares * classification + slopes["affine"]
    assert gradient.numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)


def test_betas_do_not_change_the_forward_pass(differences):
    outputs = []
    for betas in ((1.0, 1.0), (0.0, 0.3)):
        differences.model.beta_att, differences.model.beta_aff = betas
        with torch.no_grad():
            outputs.append(differences.model(differences.images))
    for first, second in zip(*outputs, strict=True):
        assert torch.equal(first, second)


# --- the forward pass


def test_classifier_gets_the_whole_image_while_theta_is_not_trusted(differences):
    model = differences.model
    model.trust_theta = False
    output = model(differences.images)
    model.trust_theta = True
    whole = torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 2, dtype=torch.float64)
    assert torch.equal(output.crop, crop(differences.images, whole, model.crop_size))
    assert not torch.allclose(output.theta, whole)  # which the local losses go on to train
    assert torch.autograd.grad(output.logits.sum(), output.theta, allow_unused=True) == (None,)


def test_output_is_attnet_affnet_crop_and_classifier_in_turn(small):
    torch.manual_seed(0)
    model = with_live_affnet(build_model(small, 3, pretrained=False)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        output = model(images)
        attention = model.attnet(images)
        theta = model.affnet(attention)
        cropped = crop(images, theta, 48)
        logits, embedding = model.classifier(cropped)
    for actual, expected in zip(output, (logits, embedding, attention, theta, cropped), strict=True):
        torch.testing.assert_close(actual, expected)
    assert [tuple(value.shape) for value in output] == [(2, 3), (2, 16), (2, 1, 14, 14), (2, 4), (2, 3, 48, 48)]


@pytest.mark.parametrize("batch", [2, 3])
def test_plain_timm_classifier_gives_logits_alone(small, batch):
    """A batch of two must not be taken for logits and embedding."""
    torch.manual_seed(0)
    parts = build_model(small, 3, pretrained=False)
    plain = timm.create_model("resnet10t", num_classes=10)
    teacher = Teacher("resnet10t", 64, 16, 14)
    model = EndToEndModel(plain, parts.attnet, parts.affnet, teacher, crop_size=48).eval()
    output = model(torch.randn(batch, 3, 64, 64))
    assert output.embedding is None
    torch.testing.assert_close(output.logits, plain(output.crop))
    assert model.teacher_map(torch.randn(batch, 3, 64, 64)).shape == (batch, 1, 14, 14)


def test_first_crop_is_the_whole_image(small):
    model = build_model(replace(small, crop_size=64), 3, pretrained=False)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images).crop, images, atol=1e-4, rtol=0)


# --- the teacher pass


@pytest.fixture
def trained_mode_model(small):
    """In training mode, with running statistics that differ from those of a batch."""
    torch.manual_seed(0)
    model = build_model(replace(small, map_size=4), 3, pretrained=False).train()
    model(torch.randn(4, 3, 64, 64))
    return model


def test_teacher_leaves_statistics_modes_and_gradients_alone(trained_mode_model):
    model = trained_mode_model
    model.classifier.backbone.layer2.eval()  # a part that was in evaluation mode stays there, the rest in training
    modes = {name: module.training for name, module in model.named_modules()}
    assert set(modes.values()) == {True, False}
    before = deepcopy(model.state_dict())
    assert not model.teacher_map(torch.randn(2, 3, 64, 64)).requires_grad
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stride, cells", [(16, 4), (32, 2)])
def test_teacher_map_is_the_channel_mean_in_evaluation_mode(trained_mode_model, small, stride, cells):
    """Also at an output stride that is not the classifier's own, with its weights."""
    images = torch.randn(2, 3, 64, 64)
    backbone = trained_mode_model.classifier.backbone
    actual = Teacher(small.backbone, 64, stride, cells)(backbone, images).numpy()
    by_hand = create_backbone(small.backbone, pretrained=False, output_stride=stride).eval()
    by_hand.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        features = by_hand.forward_features(images).numpy()
    assert features.shape == (2, 512, cells, cells)
    expected = sum(features[:, channel] for channel in range(512)) / 512
    assert actual[:, 0] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_teacher_map_follows_the_live_weights(trained_mode_model):
    images = torch.randn(1, 3, 64, 64)
    before = trained_mode_model.teacher_map(images)
    with torch.no_grad():
        for parameter in trained_mode_model.classifier.backbone.parameters():
            parameter.mul_(1.1)
    assert (trained_mode_model.teacher_map(images) - before).abs().max() > 1e-4


def test_teacher_map_is_resized_to_the_grid_of_the_attention_map(trained_mode_model, small):
    images = torch.randn(1, 3, 64, 64)
    own = trained_mode_model.teacher_map(images)[0, 0].numpy()  # 4x4
    actual = Teacher(small.backbone, 64, 16, 7)(trained_mode_model.classifier.backbone, images)[0, 0].numpy()
    position = np.clip((np.arange(7) + 0.5) * 4 / 7 - 0.5, 0, 3)  # of the new cells' centres among the old ones'
    columns = np.array([np.interp(position, range(4), row) for row in own])
    expected = np.array([np.interp(position, range(4), column) for column in columns.T]).T
    assert actual == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_teacher_sees_the_image_at_its_own_size(small):
    model = build_model(replace(small, teacher_size=96), 3, pretrained=False)
    seen = []
    first = _skeleton(small.backbone, small.teacher_output_stride, small.teacher_layer).network.backbone.conv1
    with first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape)):
        assert model.teacher_map(torch.randn(2, 3, 64, 64)).shape == (2, 1, 14, 14)
    assert seen == [(2, 3, 96, 96)]


def test_teacher_has_no_weights_of_its_own(trained_mode_model):
    assert not [name for name in trained_mode_model.state_dict() if name.startswith("teacher")]
    assert {p.device.type for p in trained_mode_model.parameters()} == {"cpu"}


# --- Table 2


@pytest.mark.parametrize("row", TABLE2, ids=named)
def test_gradient_of_the_classification_goes_where_the_row_says(small, row):
    config = row_config(small, row)
    model = with_live_affnet(build_model(config, 3, pretrained=False)).eval()
    output = model(torch.randn(2, 3, 64, 64))
    torch.nn.functional.cross_entropy(output.logits, LABELS).backward()

    def reached(module):
        return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())

    assert reached(model.classifier)
    assert reached(model.affnet) == (row["beta_aff"] > 0)
    assert reached(model.attnet) == (row["beta_aff"] > 0 and row["beta_att"] > 0)


@pytest.mark.parametrize("row", TABLE2[2:], ids=named)  # the rows with local losses
def test_gradient_of_the_affine_loss_goes_where_the_row_says(small, row):
    model = with_live_affnet(build_model(row_config(small, row), 3, pretrained=False)).eval()
    _, theta = model.localisation(torch.randn(2, 3, 64, 64))
    theta.square().sum().backward()
    gradients = [p.grad for p in model.attnet.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in gradients) == (row["beta_att"] > 0)
    assert model.affnet.preprocess.w_tau.grad.abs() > 0


def trained(config, splits, folder) -> tuple[dict, dict]:
    """Weights and buffers before and after training."""
    torch.manual_seed(3)
    start = build_model(config, 3).state_dict()
    list(train(config, splits, 3, folder / "checkpoint.pt"))
    return start, torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def moved(start: dict, end: dict, module: str) -> list[str]:
    return [name for name in start if name.startswith(module) and not torch.equal(start[name], end[name])]


def test_baseline_leaves_every_localisation_value_at_its_start_in_spite_of_weight_decay(tiny, splits, tmp_path):
    config = replace(row_config(tiny, TABLE2[0]), weight_decay=0.1)
    assert (config.beta_att, config.beta_aff, config.lambda_att, config.lambda_aff) == (0, 0, 0, 0)
    start, end = trained(config, splits, tmp_path)
    assert moved(start, end, "attnet.") == [] and moved(start, end, "affnet.") == []
    assert "classifier.output.weight" in moved(start, end, "classifier.")
    model = build_model(config, 3)
    model.load_state_dict(end)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images).theta, IDENTITY.expand(2, 4))
    assert torch.equal(model.eval()(images).theta, IDENTITY.expand(2, 4))


@pytest.mark.parametrize("row", TABLE2[1:], ids=named)
def test_other_rows_move_all_three_modules_without_the_help_of_weight_decay(tiny, splits, tmp_path, row):
    rate = 3e-3 if row["local_losses"] == "yes" else 1e-4  # alone, 3e-3 throws the crop off these tiny images at once
    config = replace(row_config(tiny, row), weight_decay=0.0, localisation_learning_rate=rate)
    # In a warm-up, and softly under the limit, nothing but the local losses would reach AttNet.
    config = replace(config, epochs=1, warmup_epochs=0, theta_gradient_limit=None)
    start, end = trained(config, splits, tmp_path)
    for name in ("attnet.stem.layers.conv_stem.weight", "attnet.head.weight", "affnet.preprocess.w_tau"):
        assert name in moved(start, end, name.split(".")[0] + "."), name
    assert "affnet.horizontal.3.weight" in moved(start, end, "affnet.")
    assert "classifier.output.weight" in moved(start, end, "classifier.")


@pytest.mark.parametrize(
    "values, learns",
    [
        ({"lambda_att": 0.0, "lambda_aff": 0.0, "beta_att": 1.0, "beta_aff": 0.0}, (False, False)),
        ({"lambda_att": 0.0, "lambda_aff": 16.0, "beta_att": 0.0, "beta_aff": 0.0}, (False, True)),
        ({"lambda_att": 0.0, "lambda_aff": 16.0, "beta_att": 1.0, "beta_aff": 0.0}, (True, True)),
        ({"lambda_att": 16.0, "lambda_aff": 0.0, "beta_att": 0.0, "beta_aff": 0.0}, (True, False)),
        ({"lambda_att": 0.0, "lambda_aff": 0.0, "beta_att": 0.0, "beta_aff": 1.0}, (False, True)),
    ],
)
def test_a_module_that_no_gradient_reaches_is_frozen(small, values, learns):
    model = build_model(replace(small, **values), 3, pretrained=False)
    for module, expected in zip((model.attnet, model.affnet), learns, strict=True):
        assert {p.requires_grad for p in module.parameters()} == {expected}
    assert model.localise == any(learns)
