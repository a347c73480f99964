"""The training loop: exact resumption, seeds, stops, refusals, the schedule."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from fgvclib.config import PROJECT, load_config
from fgvclib.model.system import build_model
from fgvclib.study.experiment import Experiment
from fgvclib.tools.cli import main
from fgvclib.training import loop
from fgvclib.training.checkpoints import read_checkpoint
from fgvclib.training.loop import NonFiniteLoss, build_optimiser, build_schedule, watched_boxes
from fgvclib.training.runs import describe_epoch

train = partial(loop.train, pretrained=False)


@pytest.fixture(scope="module")
def tiny(small):
    """Nothing here depends on what a network has learnt before."""
    return small


def finished(config, splits, seed, path) -> tuple[list[dict], dict]:
    """Train to the end → records without the wall clock, and the checkpoint."""
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in train(config, splits, seed, path)]
    return records, read_checkpoint(path)


def assert_same(first, second):
    """Bit for bit, through nested dicts and lists; the wall clock and what was computed with aside."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"seconds", "provenance"}:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


@pytest.fixture(scope="module")
def uninterrupted(tiny, splits, tmp_path_factory):
    return finished(tiny, splits, 0, tmp_path_factory.mktemp("uninterrupted") / "checkpoint.pt")


# --- resumption and seeds


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tiny, splits, tmp_path, uninterrupted):
    path = tmp_path / "checkpoint.pt"
    for record in train(tiny, splits, 0, path):
        assert record["epoch"] == 1
        break  # as if the process had been killed after the first of two epochs
    assert len(read_checkpoint(path)["history"]) == 1
    torch.manual_seed(99)
    records, checkpoint = finished(tiny, splits, 0, path)
    assert_same(records, uninterrupted[0])
    assert_same(checkpoint, uninterrupted[1])
    assert [record["epoch"] for record in records] == [1, 2]


def test_finished_run_yields_its_records_again_without_training(tiny, splits, tmp_path, uninterrupted, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    torch.save(uninterrupted[1], path)
    monkeypatch.setattr(loop, "train_one_epoch", None)
    assert_same(finished(tiny, splits, 0, path)[0], uninterrupted[0])


def test_same_seed_same_numbers_other_seed_other_numbers(tiny, splits, tmp_path, uninterrupted):
    torch.manual_seed(7)
    again = finished(tiny, splits, 0, tmp_path / "again.pt")
    other = finished(tiny, splits, 1, tmp_path / "other.pt")
    assert_same(again, uninterrupted)
    key = "classifier.output.weight"
    assert not torch.equal(other[1]["model"][key], uninterrupted[1]["model"][key])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_every_epoch_sees_other_pictures_of_the_photos_in_another_order(tiny, splits, tmp_path, monkeypatch):
    seen = []

    def record(model, criterion, optimiser, loader, *rest):
        pairs = [pair for batch in loader for pair in zip(batch["index"].tolist(), batch["image"], strict=True)]
        seen.append(dict(pairs))
        return {}

    monkeypatch.setattr(loop, "train_one_epoch", record)
    config = replace(tiny, backbone="resnet10t", attnet_backbone="resnet10t")
    list(train(config, splits, 0, tmp_path / "checkpoint.pt", pretrained=False))
    first, second = seen
    assert set(first) == set(second) == set(range(len(splits.train)))
    assert list(first) != list(second)
    assert not any(torch.equal(first[i], second[i]) for i in first)


def test_checkpoint_names_the_classes(splits, uninterrupted):
    assert uninterrupted[1]["class_names"] == splits.class_names and len(splits.class_names) == 3


def test_record_holds_every_term_and_score(uninterrupted):
    record = uninterrupted[0][-1]
    terms = ("cross_entropy", "embedding", "attention", "affine")
    assert record["train_total"] == pytest.approx(sum(record[f"train_{term}"] for term in terms), rel=1e-5)
    assert {"validation_accuracy", "validation_mean_iou", "validation_box_acc_0.5", "learning_rate"} < set(record)
    assert [row for row, *_ in record["watched_boxes"]] == [0, 1, 2]


# --- stops and refusals


def poison(monkeypatch, term: str, from_epoch: int, value: float):
    """Let a loss term become `value` from an epoch on."""
    real, calls = loop.EndToEndLoss.forward, []

    def forward(self, *args):
        calls.append(None)
        terms = real(self, *args)
        if len(calls) > 3 * (from_epoch - 1) + 1:  # three steps an epoch; the first step of the epoch is sound
            terms[term] = terms[term] * value
            terms["total"] = terms["total"] * value
        return terms

    monkeypatch.setattr(loop.EndToEndLoss, "forward", forward)


@pytest.mark.parametrize("term", ["cross_entropy", "attention"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_names_the_term(tiny, splits, tmp_path, monkeypatch, term, value):
    poison(monkeypatch, term, 1, value)
    with pytest.raises(NonFiniteLoss, match=f"'{term}' became {value}"):
        list(train(replace(tiny, epochs=1), splits, 0, tmp_path / "checkpoint.pt"))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_non_finite_loss_keeps_the_last_checkpoint(tiny, splits, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    poison(monkeypatch, "affine", 2, float("nan"))
    records = []
    with pytest.raises(NonFiniteLoss, match="last checkpoint is kept"):
        for record in train(tiny, splits, 0, path):
            records.append(record)
            content = path.read_bytes()
    assert len(records) == 1 and path.read_bytes() == content
    assert len(read_checkpoint(path)["history"]) == 1
    assert all(value.isfinite().all() for value in read_checkpoint(path)["model"].values())


@pytest.mark.parametrize("command", [["train", "--rows", "Baseline", "--jobs", "1"], ["app"]])
def test_training_that_diverges_is_told_in_a_sentence(monkeypatch, capsys, command):
    def diverges(*arguments):
        raise NonFiniteLoss("Training stopped because 'total' became nan.")

    monkeypatch.setattr(Experiment, "run", diverges)
    assert main([*command, "--profile", "smoke"]) == 1
    assert capsys.readouterr().err == "Training stopped because 'total' became nan.\n"


def test_damaged_checkpoint_is_refused_with_a_sentence(tiny, splits, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint.pt .*; delete it to start this run again\."):
        next(train(tiny, splits, 0, tmp_path / "checkpoint.pt"))


@pytest.mark.parametrize("change, seed", [({"lambda_att": 8.0}, 0), ({"learning_rate": 0.1}, 0), ({}, 1)])
def test_checkpoint_of_another_configuration_or_seed_is_refused(tiny, splits, tmp_path, uninterrupted, change, seed):
    path = tmp_path / "checkpoint.pt"
    torch.save(uninterrupted[1], path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="belongs to another run .*there, .* now"):
        next(train(replace(tiny, **change), splits, seed, path))
    assert path.read_bytes() == content


# --- optimiser and schedule


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize(
    "epochs, drops, last", [(90, 2, [30, 60]), (10, 2, [4, 7]), (90, 0, []), (8, 3, [2, 4, 6]), (2, 2, [1, 2])]
)
def test_learning_rate_drops_to_a_tenth_after_equal_parts(tiny, splits, tmp_path, monkeypatch, epochs, drops, last):
    """After 30 and 60 of 90 epochs, as in the paper."""
    monkeypatch.setattr(loop, "train_one_epoch", lambda *args: {})
    monkeypatch.setattr(loop, "predict", lambda *args, **options: None)
    monkeypatch.setattr(loop, "summarise", lambda *args: {})
    monkeypatch.setattr(loop, "watched_boxes", lambda *args: [])
    monkeypatch.setattr(loop, "save_checkpoint", lambda *args: None)
    config = replace(tiny, backbone="resnet10t", attnet_backbone="resnet10t", epochs=epochs, lr_drops=drops)
    records = list(train(config, splits, 0, tmp_path / "checkpoint.pt", pretrained=False))
    assert len(records) == epochs
    expected = [0.003 * 0.1 ** sum(epoch > drop for drop in last) for epoch in range(1, epochs + 1)]
    assert [record["learning_rate"] for record in records] == pytest.approx(expected)


def test_localisation_has_a_group_of_its_own(tiny):
    config = replace(tiny, learning_rate=0.02, localisation_learning_rate=0.001, weight_decay=0.05, momentum=0.8)
    model = build_model(config, 3, pretrained=False)
    classifier, localisation, offsets = groups = build_optimiser(model, config).param_groups
    assert [group["lr"] for group in groups] == [0.02, 0.001, 0.001]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.05, 0.0]
    assert {group["momentum"] for group in groups} == {0.8}
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p].split(".")[0] for p in classifier["params"]} == {"classifier"}
    assert {names[p].split(".")[0] for p in localisation["params"]} == {"attnet", "affnet"}
    assert {names[p] for p in offsets["params"]} == {
        "affnet.preprocess.w_tau", "affnet.horizontal.3.bias", "affnet.vertical.3.bias"}  # fmt: skip
    assert sum(len(group["params"]) for group in groups) == len(names)  # each once, none forgotten


@pytest.mark.parametrize("decays", [False, True])
def test_weight_decay_spares_the_threshold_and_the_first_theta(tiny, decays):
    """Without gradients, momentum and decay alone: (p, buffer) → (p - rate * b, b) with b = 0.9 buffer + decay * p."""
    config = replace(tiny, weight_decay=0.01, localisation_learning_rate=0.1, decay_w_tau_and_theta_bias=decays)
    model = build_model(config, 3, pretrained=False)
    optimiser = build_optimiser(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(50):
        optimiser.step()
    step = np.array([[1 - 0.1 * 0.01, -0.1 * 0.9], [0.01, 0.9]])
    shrunk = np.linalg.matrix_power(step, 50)[0, 0] if decays else 1.0
    assert 0.5 < shrunk < 0.8 or not decays
    theta = model.affnet.eval()(torch.rand(2, 1, 14, 14))
    assert theta[0].tolist() == pytest.approx([shrunk, shrunk, 0, 0], rel=1e-5)
    assert model.affnet.preprocess.w_tau.item() == pytest.approx(0.3 * shrunk, rel=1e-5)


def test_decay_alone_would_shrink_the_crop_as_the_deviations_say():
    config = load_config("paper", "cub200")
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], config.localisation_learning_rate)
    schedule, state = build_schedule(optimiser, config), np.array([1.0, 0.0])  # the parameter and its buffer
    for _ in range(config.epochs):
        (rate,), decay = schedule.get_last_lr(), config.weight_decay
        step = np.array([[1 - rate * decay, -rate * config.momentum], [decay, config.momentum]])
        state = np.linalg.matrix_power(step, 5994 // config.batch_size) @ state
        optimiser.step()
        schedule.step()
    told = f"decay alone would take the scale from 1 to {state[0]:.2f} and w_τ from 0.30 to {0.3 * state[0]:.2f}"
    assert told in (PROJECT / "docs" / "deviations.md").read_text(encoding="utf-8")


def test_without_validation_part_all_photos_train_and_its_scores_are_missing(tiny, splits, tmp_path):
    config = replace(tiny, epochs=1)
    whole = replace(splits, validation=splits.validation.iloc[:0])
    (record,) = train(config, whole, 0, tmp_path / "checkpoint.pt", pretrained=False)
    assert np.isnan(record["validation_accuracy"]) and record["watched_boxes"] == []
    line = describe_epoch(record, 1)
    assert "validation" not in line and "nan" not in line and f"train {record['train_accuracy']:.1%}" in line


def test_watched_photos_are_spread_over_the_table():
    table = pd.DataFrame([[i, i, i + 1, i + 1] for i in range(20)], columns=["box_x1", "box_y1", "box_x2", "box_y2"])
    watched = watched_boxes(table)
    assert [row for row, *_ in watched] == [0, 3, 6, 9, 12, 15, 18]
    assert watched[1] == [3, 3, 3, 4, 4]


@pytest.mark.parametrize("batches, processes, told", [(3, 4, "3 batches"), (1, 2, "1 batch,"), (4, 4, None)])
def test_fewer_batches_than_processes_are_refused(batches, processes, told):
    if told is None:
        loop.check_processes(batches, processes)
        return
    with pytest.raises(ValueError, match=f"^The training photos fill {told}.* there are {processes} processes; lower"):
        loop.check_processes(batches, processes)
