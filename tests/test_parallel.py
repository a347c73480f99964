"""Two processes over gloo compute what one computes with the doubled batch; only the first one writes."""

import os
import socket
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fgvclib.model.losses import EmbeddingLoss
from fgvclib.study import growth
from fgvclib.systems import cal
from fgvclib.training import loop, runs
from fgvclib.utils import parallel


def train_as(rank: int, world: int, port: int, config, splits, folder: Path) -> None:
    """In a process of its own, with the environment that `accelerate launch` gives it: train, and leave a report."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "yes",
    }
    torch.set_num_threads(1)
    # Statistics over half a batch are not those of the whole one; torch synchronises them on GPUs alone.
    _BatchNorm.train = lambda self, mode=True: torch.nn.Module.train(self, False)
    draw_nothing()
    runs.train = partial(loop.train, pretrained=False)
    report = {"seen": [], "centres": [], "written": [], "said": []}
    real_batches, real_replace, real_loss = loop.progress, os.replace, EmbeddingLoss.forward

    def batches(loader, description):
        for batch in real_batches(loader, description):
            if description == "training":
                report["seen"].append(batch["index"].tolist())
            yield batch

    def renamed(source, target):
        report["written"].append(Path(target).name)
        real_replace(source, target)

    def embedding_loss(self, features, labels):
        value = real_loss(self, features, labels)
        report["centres"].append(self.centres.clone())
        return value

    loop.progress, os.replace, EmbeddingLoss.forward = batches, renamed, embedding_loss
    run = runs.train_or_load(config, splits, 0, folder / "run", report["said"].append)
    os.replace = real_replace
    report |= {"history": run.history.to_dict("records"), "metrics": run.metrics}
    report |= {"model": run.model.state_dict(), "predictions": run.predictions.drop(columns="path").to_dict("list")}
    torch.save(report, folder / f"report{rank}.pt")


def draw_nothing() -> None:
    """What systems draw for each photo, at fixed values: two processes draw other numbers than one."""
    torch.nn.Dropout.train = lambda self, mode=True: torch.nn.Module.train(self, False)
    cal.draw_maps = lambda attention: attention[:, :2].transpose(0, 1)
    cal.draw = lambda between, count, device: torch.full((count, 1, 1), sum(between) / 2, device=device)
    cal.CAL.random_attention = lambda self, attention: torch.ones_like(attention)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def launch(splits, processes, tmp_path_factory):
    def run(config, world: int) -> list[dict]:
        with TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as place:
            folder, port = Path(place), free_port()
            group = [
                processes.Process(target=train_as, args=(rank, world, port, config, splits, folder))
                for rank in range(world)
            ]
            for process in group:
                process.start()
            for process in group:
                process.join(200)
                process.kill()
            assert [process.exitcode for process in group] == [0] * world
            return [torch.load(folder / f"report{rank}.pt", weights_only=False) for rank in range(world)]

    return run


@pytest.fixture(scope="module")
def config(small):
    """Half the batch; the last test batch of the second process is not full, and 3 validation photos are odd.

    At the rate of `small` its random weights would move too little for an error of a few percent to be seen.
    """
    return replace(small, batch_size=2, learning_rate=0.03, warmup_epochs=0, theta_gradient_limit=0.1)


@pytest.fixture(scope="module")
def two(launch, config):
    return launch(config, 2)


@pytest.fixture(scope="module")
def one(launch, config):
    return launch(replace(config, batch_size=4), 1)[0]


def test_losses_and_weights_equal_those_of_the_doubled_batch(one, two):
    for rank in two:
        for found, expected in zip(rank["history"], one["history"], strict=True):
            names = [name for name in expected if name.startswith("train_")]
            assert {"train_total", "train_embedding", "train_attention", "train_affine"} < set(names)
            assert [found[n] for n in names] == pytest.approx([expected[n] for n in names], rel=2e-4, abs=1e-5)
        for name, value in one["model"].items():
            torch.testing.assert_close(rank["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_class_centres_are_equal_on_all_processes_after_every_step(one, two):
    first, second = (torch.stack(rank["centres"]) for rank in two)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.stack(one["centres"]), rtol=1e-3, atol=1e-4)
    assert (first[-1].norm(dim=1) > 0.99).all()


def test_processes_see_different_photos_and_together_those_of_the_single_one(one, two, splits):
    for first, second, whole in zip(two[0]["seen"], two[1]["seen"], one["seen"], strict=True):
        assert not set(first) & set(second)
        assert [i % len(splits.train) for i in first + second] == whole


def test_metrics_over_uneven_shards_count_every_photo_once(one, two, splits):
    assert len(splits.validation) % 2 == 1 and len(splits.test) % 4 == 1
    for rank in two:
        assert rank["predictions"]["image_id"] == splits.test["image_id"].tolist()
        pd.testing.assert_frame_equal(
            pd.DataFrame(rank["predictions"]), pd.DataFrame(one["predictions"]), check_exact=False, atol=1e-2, rtol=1e-2
        )
        assert rank["metrics"] == pytest.approx(one["metrics"], abs=1e-2)
        for found, expected in zip(rank["history"], one["history"], strict=True):
            names = [name for name in expected if name.startswith("validation_")]
            assert [found[n] for n in names] == pytest.approx([expected[n] for n in names], abs=1e-2)


def test_only_the_first_process_writes_and_speaks(two):
    first, second = two
    assert {"checkpoint.pt", "history.csv", "predictions.csv", "metrics.json"} <= set(first["written"])
    assert second["written"] == [] and second["said"] == []
    assert any("epoch 2/2" in line for line in first["said"])


@pytest.mark.parametrize(("system", "epochs"), [("finetune", 1), ("cal", 1), ("pmg", 1), ("mmal", 2), ("racnn", 2)])
def test_systems_learn_by_two_processes_what_they_learn_by_one(system, epochs, launch, config):
    """MMAL and RA-CNN begin in another way than they go on. CAL's class centres must agree as weights do."""
    config = replace(config, system=system, epochs=epochs)
    one = launch(replace(config, batch_size=4), 1)[0]
    for rank in launch(config, 2):
        assert [r["train_total"] for r in rank["history"]] == pytest.approx(
            [r["train_total"] for r in one["history"]], rel=1e-3
        )
        for name, value in one["model"].items():
            torch.testing.assert_close(rank["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_step_is_timed_alone_and_with_a_partner(one, config):
    """After `one`: the fork server that has trained is there already."""
    table = growth.over_processes(config, 2)
    assert list(table) == ["processes", "ms", "photos_per_s"] and list(table["processes"]) == [1, 2]
    assert table["photos_per_s"].tolist() == pytest.approx([1e3 * 2 / table["ms"][0], 1e3 * 4 / table["ms"][1]])


def test_processes_wait_for_the_first_one_longer_than_torch_would(monkeypatch):
    """It computes the teacher's maps, or waits for a run of another job, while the others are at a barrier."""
    asked = {}
    monkeypatch.setattr(parallel, "PartialState", lambda **options: asked.update(options))
    parallel.process_state()
    assert asked["timeout"] > timedelta(days=1)
