"""Every training has the precision of its configuration, whatever its process has trained before."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import PartialState

from fgvclib.model.classifier import Classifier
from fgvclib.training import loop, runs
from fgvclib.utils.parallel import create_accelerator, process_state


def train_in(folder, config, splits) -> None:
    """Train, and leave the kinds of the classifier's outputs in training, validation and test."""
    torch.set_num_threads(1)
    seen, real = [], Classifier.forward

    def forward(self, images):
        output = real(self, images)
        if not images.is_meta:  # as those are with which build_model checks the shapes
            seen.append((self.training, str(output[0].dtype)))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "forward", forward)
        patch.setattr(runs, "train", partial(loop.train, pretrained=False))
        run = runs.train_or_load(config, splits, 0, folder, announce=str)
    torch.save({"seen": seen, "metrics": run.metrics, "model": run.model.state_dict()}, folder / "report.pt")


@pytest.fixture(scope="module")
def trained(small, splits, processes, tmp_path_factory):
    """Reports of bf16, fp32, bf16 in one process, and of one process for each precision."""
    folder = tmp_path_factory.mktemp("precision")
    one_epoch = replace(small, epochs=1, warmup_epochs=0)
    configs = {"bf16": replace(one_epoch, precision="bf16"), "fp32": one_epoch}
    for precision, config in configs.items():
        process = processes.Process(target=train_in, args=(folder / f"alone-{precision}", config, splits))
        process.start()
        process.join()
    for number, precision in enumerate(("bf16", "fp32", "bf16")):
        train_in(folder / f"{number}-{precision}", configs[precision], splits)
    return {path.parent.name: torch.load(path) for path in folder.glob("*/report.pt")}


@pytest.mark.parametrize("name", ["0-bf16", "1-fp32", "2-bf16"])
def test_run_equals_that_of_a_process_of_its_own(trained, name):
    here, alone = trained[name], trained[f"alone-{name.partition('-')[2]}"]
    assert here["metrics"] == alone["metrics"] and here["seen"] == alone["seen"]
    assert all(torch.equal(value, alone["model"][key]) for key, value in here["model"].items())


@pytest.mark.parametrize("name, kind", [("0-bf16", "torch.bfloat16"), ("1-fp32", "torch.float32")])
def test_training_validation_and_test_have_one_precision(trained, name, kind):
    assert {found for _, found in trained[name]["seen"]} == {kind}
    assert {training for training, _ in trained[name]["seen"]} == {True, False}


def test_weights_differ_between_the_precisions_and_are_fp32(trained):
    half, full = trained["0-bf16"]["model"], trained["1-fp32"]["model"]
    assert not torch.equal(half["classifier.output.weight"], full["classifier.output.weight"])
    assert half["classifier.output.weight"].dtype == torch.float32


@pytest.mark.parametrize("asked, precision", [("bf16", "fp32"), ("fp16", "fp32"), ("fp16", "bf16"), ("fp8", "bf16")])
def test_another_precision_asked_of_accelerate_is_refused(monkeypatch, asked, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(ValueError, match=f"asked for {asked} .* says precision = {precision}; leave that option out"):
        create_accelerator(precision)


@pytest.mark.parametrize("asked", ["no", "bf16"])
def test_what_accelerate_sets_by_itself_or_in_agreement_is_accepted(monkeypatch, asked):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    assert create_accelerator("bf16").mixed_precision == "no"


@pytest.mark.parametrize("left", [["LOCAL_RANK"], ["RANK"], ["WORLD_SIZE"], ["RANK", "LOCAL_RANK", "WORLD_SIZE"]])
def test_ranks_of_another_launcher_are_ignored_with_a_warning(monkeypatch, left):
    PartialState._reset_state()
    for name in left:
        monkeypatch.setenv(name, "0")
    with pytest.warns(UserWarning, match=f"left over from another launcher: {', '.join(left)} in the environment"):
        assert process_state().num_processes == 1
    assert not [name for name in left if name in os.environ]
