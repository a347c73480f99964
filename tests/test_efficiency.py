"""The arithmetic of the measurements, and that every side runs; no timing is judged."""

import gc
import runpy
import weakref
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from fgvclib.config import PHOTOS, PROJECT, load_config
from fgvclib.model.geometry import box_to_theta, crop
from fgvclib.model.system import build_model
from fgvclib.study import efficiency
from fgvclib.study.alternatives import MultiCrop, TwoPassCrop
from fgvclib.systems import SYSTEMS
from fgvclib.training.loop import NonFiniteLoss, build_optimiser, check_finite, train_one_epoch
from fgvclib.utils.device import device_name

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_sides_run_in_turn_and_equally_often():
    calls = []
    sides = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = efficiency.compare(sides, budget_s=60, repetitions=4)
    assert calls == ["a", "b"] + ["b", "a", "a", "b"] * 2
    assert len(times) == 4 and list(times) == ["a", "a cpu", "b", "b cpu"]


def test_a_spent_budget_still_gives_three_repetitions():
    assert len(efficiency.compare({"a": lambda: None}, budget_s=0)) == 3


def test_ratio_is_the_median_of_the_pairs_not_of_the_sides():
    times = pd.DataFrame({"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0], "a cpu": 1.0, "b cpu": [1.0, 2.0, 4.0]})
    found = efficiency.ratio(times, "a", "b")
    assert found == {"value": 3.0, "low": 2.5, "high": 3.5, "cpu_time_value": 0.5, "repetitions": 3}


def test_kept_for_backward_counts_each_storage_once_and_no_weight():
    layer = nn.Linear(8, 16, bias=False)
    x = torch.randn(4, 8)

    def forward():
        hidden = layer(x)  # keeps x; the weight is the model's own
        return (hidden * hidden + hidden.exp()).sum()  # keep hidden, and the result of exp

    assert efficiency.kept_for_backward(forward, layer) == 4 * (4 * 8 + 4 * 16 + 4 * 16)


def test_kept_for_backward_frees_the_graph():
    results = []

    def forward():
        result = torch.ones(3, requires_grad=True).exp()  # a result that its own node keeps
        results.append(weakref.ref(result))
        return result.sum()

    efficiency.kept_for_backward(forward, nn.Linear(1, 1))
    gc.collect()
    assert results[0]() is None


def test_table_sets_the_paper_beside_ours_and_says_what_no_gpu_measured():
    one = {"value": 1.01, "low": 1.0, "high": 1.02, "cpu_time_value": 1.01, "repetitions": 9}
    measured = {"inference": one, "step_given": one | {"value": 1.2}, "parameters": {"value": 5.0}}
    table = efficiency.efficiency_table(measured, load_config("smoke"))
    ours = table[table["device"] == device_name()].set_index("what")
    assert list(ours["reached"]) == ["yes", "no", ""]
    assert ours["paper_value"].iloc[0] == pytest.approx(1.0123, abs=1e-4)
    if not torch.cuda.is_available():
        pending = table[table["note"] == efficiency.NOT_YET]
        assert len(pending) == 2 and pending["value"].isna().all() and (pending["reached"] == "").all()


def test_training_step_learns_from_the_map_that_it_was_given(tiny):
    step = efficiency.TrainingStep(tiny, "given")
    step.model.teacher_map = None  # calling it would raise
    step()
    gradients = [parameter.grad.clone() for parameter in step.model.attnet.parameters()]
    step.batch["teacher_map"] = 1 - step.batch["teacher_map"]
    step()
    after = [parameter.grad for parameter in step.model.attnet.parameters()]
    assert any(not torch.allclose(one, two) for one, two in zip(gradients, after, strict=True))


@pytest.mark.parametrize("teacher", ["live", "given"])
def test_timed_step_is_the_one_of_the_training_loop(tiny, teacher):
    """Equal weights and an equal batch: the loop's epoch of one batch ends in the same gradients and statistics."""
    step = efficiency.TrainingStep(tiny, teacher)
    model, criterion = deepcopy(step.model), deepcopy(step.criterion)
    train_one_epoch(model, criterion, build_optimiser(model, tiny), [step.batch], Accelerator())
    step()
    for (name, timed), trained in zip(step.model.named_parameters(), model.parameters(), strict=True):
        assert timed.grad is not None and torch.equal(timed.grad, trained.grad), name
    assert all(map(torch.equal, step.model.buffers(), model.buffers()))


def test_step_of_the_photos_recipe_can_be_timed(tiny):
    """Its teacher never changes and knows no live form: ddt needs statistics, and AttNet learns alone first."""
    kind = {key: PHOTOS.values()[key] for key in ("teacher_weights", "teacher_layer", "teacher_mean", "box_component")}
    step = efficiency.TrainingStep(replace(tiny, **kind, box_upsample=4, localisation_epochs=6), "live")
    step()
    assert step.optimiser.state and torch.isfinite(step.loss().detach())


def test_many_steps_on_noise_stay_finite(tiny):
    step = efficiency.TrainingStep(replace(tiny, learning_rate=1e6, localisation_learning_rate=1e6), "given")
    step()
    step()
    assert torch.isfinite(step.loss().detach())


@pytest.mark.parametrize("precision, products", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_training_steps_compute_with_the_configured_precision(tiny, precision, products):
    step = efficiency.step_sides(replace(tiny, precision=precision))["given teacher map"]
    seen = []
    step.model.classifier.output.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert step.loss().dtype == torch.float32 and seen == [products]


def test_bf16_leaves_theta_in_fp32(tiny):
    model = build_model(tiny, 3, pretrained=False).eval()
    with torch.no_grad(), efficiency.autocast("bf16", torch.device("cpu")):
        output = model(torch.randn(2, 3, tiny.image_size, tiny.image_size))
    assert output.theta.dtype == torch.float32 and output.logits.dtype == torch.bfloat16


class MeanColour(nn.Module):
    """A classifier whose logits are the mean colours, and whose feature map is the image itself."""

    def feature_maps(self, images):
        return images

    def forward(self, images):
        return images.mean(dim=(2, 3)), None


def test_multi_crop_averages_the_probabilities_of_all_crops():
    images = torch.rand(2, 3, 14, 14)
    small = torch.nn.functional.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    corners = [small[..., y : y + 7, x : x + 7] for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))]
    centre = [view for view in (small[..., 0:7, 0:7], small[..., 1:8, 1:8])]  # (8 - 7) / 2 is rounded to 0 or 1
    found = MultiCrop(MeanColour(), 7)(images).exp()
    wanted = [
        torch.stack([view.mean(dim=(2, 3)).softmax(dim=1) for view in [*corners, one]]).mean(dim=0) for one in centre
    ]
    assert any(torch.allclose(found, mean, atol=1e-6) for mean in wanted)


def test_two_passes_crop_the_box_of_the_attention_map():
    images = torch.zeros(1, 3, 8, 8)
    images[:, :, 2:4, 4:8] = 1.0
    theta = box_to_theta(torch.tensor([[0.5, 0.25, 1.0, 0.5]]))
    found = TwoPassCrop(MeanColour(), 8)(images)
    assert torch.allclose(found, crop(images, theta, 8).mean(dim=(2, 3)))


def test_the_first_term_that_is_not_finite_is_named():
    with pytest.raises(NonFiniteLoss, match="'affine' became nan"):
        check_finite({"a": torch.tensor(1.0), "affine": torch.tensor(np.nan), "total": torch.tensor(np.inf)})


def test_precision_has_two_values():
    assert load_config("smoke", precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match="'fp32' or 'bf16'"):
        load_config("smoke", precision="fp16")


@pytest.mark.cuda
@needs_cuda
def test_given_map_and_bf16_steps_run_on_a_gpu(tiny):
    for precision in ("fp32", "bf16"):
        assert torch.isfinite(efficiency.TrainingStep(replace(tiny, precision=precision), "live").loss())
        assert efficiency.training_memory(tiny, precision)["counted"] == 0


def test_operations_are_those_of_the_convolutions_by_hand(tiny):
    counts = efficiency.operations(tiny)
    n, hidden = tiny.map_size, 128
    assert counts["AffNet"] == 2 * 2 * (n * hidden + hidden * 2)  # two axes, two operations for each weight
    assert counts["classifier"] > counts["AttNet"] > counts["AffNet"]


def test_operations_at_the_papers_sizes_are_those_of_a_resnet101():
    counts = efficiency.operations(load_config("paper"))
    assert counts["classifier"] / 1e9 == pytest.approx(2 * 7.80 * 4, rel=0.02)  # 7.8 GMAC at 224 px, times (448/224)²


def test_answers_cost_what_their_passes_do_over_plain_fine_tuning(tiny, monkeypatch):
    """What differs in training alone answers at no cost; a second look at the full size costs a second pass."""
    monkeypatch.setattr(efficiency, "timed_systems", lambda config: ["dcl", "finetune", "mmal"])
    costs = efficiency.system_costs(replace(tiny, batch_size=1), budget_s=0)
    assert costs["multiply_adds"].to_dict() == pytest.approx({"finetune": 1, "dcl": 1, "mmal": 2}, rel=1e-3)
    assert costs.loc["finetune", "value"] == 1 and costs["value"].is_monotonic_increasing


def test_every_system_that_takes_the_crops_is_timed_and_each_once(tiny):
    small, large = efficiency.timed_systems(tiny), efficiency.timed_systems(load_config("paper"))
    assert set(large) == {"end-to-end", *(name for name in SYSTEMS if not name.endswith("-vehicles"))}
    assert set(large) - set(small) == {"nts"} and len(set(large)) == len(large)


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(PROJECT / "benchmarks" / "training_step.py"))


def test_steps_that_the_training_photos_do_not_fill_are_refused(benchmark, tiny, splits):
    for steps in (1, 3):  # 12 photos in batches of 4
        benchmark["check_steps"](steps, tiny, splits)
    for steps in (0, 4):
        with pytest.raises(ValueError, match=f"^--steps is {steps}, but 12 training photos in batches of 4 allow for"):
            benchmark["check_steps"](steps, tiny, splits)


@pytest.mark.parametrize("teacher, given", [("live", False), ("imagenet", True)])
def test_timed_steps_are_as_many_as_asked_for_and_get_the_maps_that_a_training_gets(
    benchmark, tiny, splits, monkeypatch, teacher, given
):
    seen = []
    monkeypatch.setitem(
        benchmark["our_loop"].__globals__,
        "train_one_epoch",
        lambda model, criterion, optimiser, loader, *_: seen.extend("teacher_map" in batch for batch in loader),
    )
    benchmark["our_loop"](replace(tiny, teacher_weights=teacher), splits, 2)()
    assert seen == [given, given]
