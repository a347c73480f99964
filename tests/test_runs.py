"""Runs on disk: trained once, then loaded; the test split looked at once; metrics.json last."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from math import isnan, nan

import pandas as pd
import pytest
import torch
from PIL import Image

from fgvclib.data.checksums import DRAWN
from fgvclib.data.index import CROP
from fgvclib.study.bounds import BOUNDS
from fgvclib.study.experiment import Experiment
from fgvclib.study.table2 import ROWS, table2
from fgvclib.training import loop, runs
from fgvclib.training.checkpoints import read_checkpoint
from fgvclib.training.evaluation import predict, summarise
from fgvclib.training.identity import data_checksums, differences, run_identity
from fgvclib.training.runs import Run, describe_epoch, train_or_load
from fgvclib.utils.files import locked
from fgvclib.utils.provenance import ask_for_fresh_runs, library_hash

FILES = {"checkpoint.pt", "history.csv", "trajectories.csv", "predictions.csv", "metrics.json"}


@pytest.fixture(scope="module")
def tiny(small):
    """Nothing here depends on what a network has learnt before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "train", partial(loop.train, pretrained=False))
        yield small


@pytest.fixture(scope="module")
def finished(tiny, splits, tmp_path_factory):
    """A run, what it announced, and which tables were predicted on."""
    said, looked_at = [], []

    def recorded(model, loader, photos, *args, **options):
        looked_at.append(next(name for name in ("train", "validation", "test") if photos is getattr(splits, name)))
        return predict(model, loader, photos, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "predict", recorded)
        patch.setattr(loop, "predict", recorded)
        run = train_or_load(tiny, splits, 0, tmp_path_factory.mktemp("runs") / "end-to-end", said.append)
    return run, said, looked_at


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run's folder, to be changed."""
    return shutil.copytree(finished[0].folder, tmp_path / "copy")


def no_training(*args, **options):
    raise AssertionError("this run should not train")


def test_folder_holds_the_files_that_the_lesson_reads(finished):
    assert FILES <= {path.name for path in finished[0].folder.iterdir()}
    assert not list(finished[0].folder.glob("*.tmp"))


def test_test_split_is_looked_at_once_at_the_end(finished):
    assert finished[2] == ["validation", "validation", "test"]


def test_one_line_is_announced_per_epoch(finished):
    said = [line for line in finished[1] if "epoch " in line]
    assert len(said) == 2 and "epoch 1/2" in said[0] and "epoch 2/2" in said[1]


def test_epochs_line_is_readable():
    record = {"epoch": 3, "train_total": 2.3149, "train_accuracy": 0.5421, "validation_accuracy": 0.51,
              "validation_mean_iou": 0.456, "seconds": 12.6}  # fmt: skip
    expected = "epoch 3/10  loss 2.315  train 54.2%  validation 51.0%  IoU 0.46  13 s"
    assert describe_epoch(record, 10) == expected
    del record["validation_mean_iou"]
    assert describe_epoch(record, 10) == expected.replace("IoU 0.46  ", "")


def test_run_and_table_without_true_boxes_say_so(tiny, splits, finished, tmp_path):
    """All but the boxes as in the finished run: the weights are the same, localisation is not scored."""
    bare = {part: getattr(splits, part).assign(x1=nan, y1=nan, x2=nan, y2=nan) for part in ("validation", "test")}
    said = []
    run = train_or_load(tiny, replace(splits, **bare), 0, tmp_path / "run", said.append)
    assert said[0].endswith("there are no true boxes, so localisation is not scored") and "IoU" not in said[1]
    assert run.metrics == {"accuracy": finished[0].metrics["accuracy"]}
    row = table2({"End-to-end": [run]}).iloc[0]
    assert row["accuracy_mean"] == pytest.approx(100 * run.metrics["accuracy"]) and isnan(row["mean_iou"])


def test_second_call_loads_without_training(tiny, splits, finished, monkeypatch):
    monkeypatch.setattr(runs, "train", no_training)
    monkeypatch.setattr(runs, "predict", no_training)
    run = train_or_load(tiny, splits, 0, finished[0].folder)
    assert run.metrics == finished[0].metrics
    assert run.history.equals(finished[0].history)


def test_metrics_are_those_of_the_saved_predictions_and_model(finished, splits, tiny):
    run = finished[0]
    assert run.metrics == pytest.approx(summarise(run.predictions))
    assert run.predictions["path"].tolist() == splits.test["path"].tolist()
    assert "teacher_mean_iou" in run.metrics
    assert not run.model.training
    stored = torch.load(run.folder / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(value, stored[name]) for name, value in run.model.state_dict().items())
    again = predict(run.model, runs.evaluation_loader(splits.test, tiny), splits.test)
    assert again["prediction"].tolist() == run.predictions["prediction"].tolist()


def test_history_and_trajectories_have_a_row_per_epoch(finished):
    run = finished[0]
    assert run.history["epoch"].tolist() == [1, 2]
    assert run.trajectories["epoch"].tolist() == [1, 1, 1, 2, 2, 2]
    assert list(run.trajectories.columns) == ["row", "x1", "y1", "x2", "y2", "epoch"]


def test_metrics_name_the_configuration_and_seed(finished, tiny):
    stored = json.loads((finished[0].folder / "metrics.json").read_text())
    assert stored["config"] == {name: value for name, value in asdict(tiny).items() if "table1" not in name}
    assert stored["seed"] == 0


@pytest.mark.parametrize(
    "change, seed, told",
    [
        ({"beta_att": 0.0}, 0, "beta_att: 1.0 there, 0.0 now"),
        ({"epochs": 3}, 0, "epochs: 2 there, 3 now"),
        ({"precision": "bf16"}, 0, "precision: fp32 there, bf16 now"),
        ({}, 1, "seed: 0 there, 1 now"),
    ],
)
def test_run_of_another_configuration_or_seed_is_refused(tiny, splits, copy, change, seed, told, monkeypatch):
    monkeypatch.setattr(runs, "train", no_training)
    with pytest.raises(
        ValueError, match=rf"copy holds another run \({told}\); move it away, or train anew with --fresh"
    ):
        train_or_load(replace(tiny, **change), splits, seed, copy)


def test_half_finished_run_of_another_configuration_is_refused_and_left_alone(tiny, splits, copy):
    (copy / "metrics.json").unlink()
    history = (copy / "history.csv").read_text()
    with pytest.raises(ValueError, match=r"belongs to another run \(epochs: 2 there, 5 now\)"):
        train_or_load(replace(tiny, epochs=5), splits, 0, copy)
    assert (copy / "history.csv").read_text() == history and not (copy / "metrics.json").exists()


@pytest.mark.parametrize("change", [{"workers": 3}, {"cut_banner": False}, {"setting2_embedding_dim": 7}], ids=str)
def test_run_is_reused_where_what_changed_has_no_effect_on_it(tiny, splits, copy, change):
    made = (copy / "checkpoint.pt").stat().st_mtime_ns
    train_or_load(replace(tiny, **change), splits, 0, copy, announce=pytest.fail)
    assert (copy / "checkpoint.pt").stat().st_mtime_ns == made


@pytest.mark.parametrize("weight, told", [(0.0, []), (16.0, ["localisation_epochs: 20 there, 0 now"])])
def test_localisation_alone_has_no_effect_without_local_losses(tiny, splits, weight, told):
    config = replace(tiny, teacher_weights="imagenet", lambda_att=weight, lambda_aff=0.0)
    there, now = (run_identity(replace(config, localisation_epochs=epochs), splits, 0) for epochs in (20, 0))
    assert differences(there, now) == told


RATE = ["localisation_learning_rate: 0.01 there, 0.001 now"]


@pytest.mark.parametrize(
    "row, told",
    [(ROWS["Baseline"], []), ({"system": "finetune"}, []), (ROWS["No local supervision"], RATE), ({}, RATE)],
)
def test_the_rate_of_attnet_and_affnet_has_no_effect_where_neither_learns(tiny, splits, row, told):
    config = replace(tiny, **row)
    there, now = (run_identity(replace(config, localisation_learning_rate=rate), splits, 0) for rate in (0.01, 0.001))
    assert differences(there, now) == told


def test_run_stored_before_a_key_existed_is_reused(tiny, splits, copy):
    stored = json.loads((copy / "metrics.json").read_text())
    del stored["config"]["crop_margin"], stored["config"]["precision"]
    (copy / "metrics.json").write_text(json.dumps(stored))
    train_or_load(tiny, splits, 0, copy, announce=pytest.fail)
    with pytest.raises(ValueError, match="crop_margin: 0.0 there, 0.1 now"):
        train_or_load(replace(tiny, crop_margin=0.1), splits, 0, copy)


# --- other data


def photos_in(folder, splits):
    """The splits, with copies of their photos in another folder."""
    folder.mkdir()
    tables = {}
    for part in ("train", "validation", "test"):
        table = getattr(splits, part)
        paths = [shutil.copy(path, folder / f"{part}{row}.png") for row, path in enumerate(table["path"])]
        tables[part] = table.assign(path=[str(path) for path in paths])
    return replace(splits, **tables)


def renamed_class(splits):
    return replace(splits, class_names=["Manx", *splits.class_names[1:]])


def changed_photo(splits):
    path = splits.test["path"][4]
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    return splits


def other_label(splits):
    return replace(splits, validation=splits.validation.assign(label=[2, 1, 0]))


def one_photo_less(splits):
    return replace(splits, test=splits.test[:-1])


def other_box(splits):
    return replace(splits, test=splits.test.assign(x1=0.0))


@pytest.mark.parametrize(
    "change, told",
    [
        (renamed_class, "other classes"),
        (other_label, "other labels"),
        (one_photo_less, "other labels, other boxes"),
        (other_box, "other boxes"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("finished_before", [True, False], ids=["finished", "half finished"])
def test_run_of_other_data_is_refused(tiny, splits, copy, tmp_path, change, told, finished_before, monkeypatch):
    monkeypatch.setattr(runs, "predict", no_training)
    monkeypatch.setattr(loop, "train_one_epoch", no_training)
    moved = photos_in(tmp_path / "moved", splits)
    train_or_load(tiny, moved, 0, copy, announce=pytest.fail)  # the same photos in another place are the same data
    if not finished_before:
        (copy / "metrics.json").unlink()
    with pytest.raises(ValueError, match=rf"another run \({told}\); move it away, or train anew with --fresh"):
        train_or_load(tiny, change(moved), 0, copy)


def test_photos_are_known_by_their_bytes_and_drawn_ones_by_the_version_that_drew_them(tiny, splits, tmp_path):
    """On some processors now and then a value of a drawn photo is one higher or lower; runs are shared all the same."""
    moved = photos_in(tmp_path / "moved", splits)
    photos = replace(tiny, dataset="folder")
    now, drawn = data_checksums(moved, photos), data_checksums(moved, tiny)
    changed = changed_photo(moved)
    assert [part for part, value in data_checksums(changed, photos).items() if value != now[part]] == ["photos"]
    assert data_checksums(changed, tiny) == drawn
    identity = run_identity(tiny, splits, 0)
    for stored, told in (("0" * 64, []), (f"{DRAWN}1", ["other photos"])):  # bytes, as of earlier releases
        there = identity | {"data": drawn | {"photos": stored}}
        assert differences(there, identity | {"data": drawn}) == told


def test_boxes_that_an_oracle_crops_to_belong_to_its_run(tiny, splits):
    config, box = replace(tiny, **BOUNDS["Oracle crop"]), dict.fromkeys(CROP, 0.25)
    before = data_checksums(replace(splits, train=splits.train.assign(**box)), config)
    after = data_checksums(replace(splits, train=splits.train.assign(**box | {CROP[0]: 0.2})), config)
    assert [part for part in before if before[part] != after[part]] == ["boxes"]


def test_predictions_find_their_photos_by_id(tiny, splits, finished, tmp_path):
    """A table in another order, as of a folder that was sorted anew."""
    turned = replace(splits, test=splits.test[::-1].reset_index(drop=True))
    run = Run(finished[0].folder, tiny, 0, turned)
    expected = dict(zip(splits.test["image_id"], splits.test["path"], strict=True))
    assert dict(zip(run.predictions["image_id"], run.predictions["path"], strict=True)) == expected


# --- the code that made it


def test_run_says_what_it_was_made_with(finished):
    stored = json.loads((finished[0].folder / "metrics.json").read_text())
    made_by = stored["provenance"]
    assert stored["world_size"] == made_by["world_size"] == 1 and made_by["precision"] == "fp32"
    assert made_by["library"] == library_hash() and torch.__version__.startswith(made_by["versions"]["torch"])
    assert {"commit", "dirty", "device", "threads", "command", "date"} <= set(made_by)
    assert made_by["minutes"] == pytest.approx(finished[0].history["seconds"].sum() / 60, abs=0.01)
    assert made_by == read_checkpoint(finished[0].checkpoint)["provenance"] and made_by["earlier"] == []


def set_made_by(folder, **changes):
    """Let the run in a folder be made by other code."""
    stored = json.loads((folder / "metrics.json").read_text())
    stored["provenance"] |= changes
    (folder / "metrics.json").write_text(json.dumps(stored))
    state = read_checkpoint(folder / "checkpoint.pt")
    state["provenance"] |= changes
    torch.save(state, folder / "checkpoint.pt")


def test_run_of_other_library_code_is_loaded_with_a_remark_that_names_both_commits(tiny, splits, copy, monkeypatch):
    monkeypatch.setattr(runs, "train", no_training)
    monkeypatch.setattr(runs, "code_state", lambda: {"commit": "b" * 40, "dirty": True})
    set_made_by(copy, library="of an earlier losses.py", commit="a" * 40, dirty=False)
    said = []
    monkeypatch.setattr(runs, "_REMARKED", set())
    for _ in range(2):
        train_or_load(tiny, splits, 0, copy, said.append)
    assert said == [
        "copy: made by other library code (commit aaaaaaaaaa; now commit bbbbbbbbbb with changes; said once for each "
        "commit). --fresh trains it anew."
    ]


def test_run_of_an_earlier_version_is_loaded_with_a_remark(tiny, splits, copy):
    stored = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps({key: stored[key] for key in ("config", "seed", "test")}))
    said = []
    assert train_or_load(tiny, splits, 0, copy, said.append).metrics == stored["test"]
    assert "commit not recorded" in said[0] and "its data were not recorded" in said[0]


def test_training_that_other_code_began_says_so_and_remembers_it(tiny, splits, copy, tmp_path):
    """Of the two epochs the first one is there."""
    half = read_checkpoint(copy / "checkpoint.pt")
    assert next(runs.train(tiny, splits, 0, tmp_path / "checkpoint.pt"))["epoch"] == 1
    set_to = read_checkpoint(tmp_path / "checkpoint.pt")
    set_to["provenance"] |= {"library": "of an earlier losses.py", "commit": "a" * 40, "dirty": False}
    torch.save(set_to, tmp_path / "checkpoint.pt")
    with pytest.warns(UserWarning, match=r"begun by other library code \(commit aaaaaaaaaa\)"):
        list(runs.train(tiny, splits, 0, tmp_path / "checkpoint.pt"))
    done = read_checkpoint(tmp_path / "checkpoint.pt")
    assert [before["commit"] for before in done["provenance"]["earlier"]] == ["a" * 40]
    assert done["provenance"]["library"] == library_hash()
    assert all(torch.equal(value, half["model"][name]) for name, value in done["model"].items())


@pytest.mark.parametrize(
    "other", [{"processor": "another"}, {"device": "NVIDIA A100"}, {"versions": {"torch": "2.1.0"}}]
)
def test_training_that_another_machine_began_remembers_it(tiny, splits, tmp_path, other):
    path = tmp_path / "checkpoint.pt"
    assert next(runs.train(tiny, splits, 0, path))["epoch"] == 1
    state = read_checkpoint(path)
    torch.save(state | {"provenance": state["provenance"] | other}, path)
    list(runs.train(tiny, splits, 0, path))
    (before,) = read_checkpoint(path)["provenance"]["earlier"]
    assert other.items() <= before.items()


@pytest.mark.parametrize("part", ["model", "optimiser"])
def test_training_whose_parameters_have_changed_since_says_so(tiny, splits, copy, part):
    state = read_checkpoint(copy / "checkpoint.pt")
    state["provenance"]["commit"] = "a" * 40
    if part == "model":
        state["model"].popitem()
    else:
        state["optimiser"]["param_groups"].pop()
    torch.save(state, copy / "checkpoint.pt")
    with pytest.raises(
        ValueError, match=r"\(commit aaaaaaaaaa.*\), whose parameters are not the present ones. --fresh"
    ):
        next(runs.train(tiny, splits, 0, copy / "checkpoint.pt"))


def test_run_of_several_processes_is_read_by_one_with_a_remark(tiny, splits, copy):
    stored = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps(stored | {"world_size": 4}))
    said = []
    train_or_load(tiny, splits, 0, copy, said.append)
    assert said == ["copy: trained by 4 processes. --fresh trains it anew."]


def test_fresh_run_moves_the_old_one_aside_and_is_made_once(tiny, splits, copy, monkeypatch):
    monkeypatch.setenv("FGVC_FRESH", "0")  # to be set back
    old = json.loads((copy / "metrics.json").read_text())
    ask_for_fresh_runs()
    said = []
    train_or_load(replace(tiny, epochs=1, warmup_epochs=0), splits, 0, copy, said.append)  # another one may follow
    assert "training 1 epochs" in said[0]
    (aside,) = (copy.parent / "replaced").iterdir()
    assert aside.name.startswith("copy-20") and FILES <= {path.name for path in aside.iterdir()}
    assert json.loads((aside / "metrics.json").read_text()) == old
    monkeypatch.setattr(runs, "train", no_training)
    train_or_load(replace(tiny, epochs=1, warmup_epochs=0), splits, 0, copy, announce=pytest.fail)


def test_finding_a_run_trains_nothing_even_where_fresh_ones_are_wanted(tiny, splits, copy, monkeypatch):
    """As notebook 11 with --fresh: it shows rivals that are there, and trains none."""
    experiment = Experiment("smoke", "synthbirds")
    experiment.config, experiment.folder, experiment.splits = tiny, copy.parent, splits
    (copy.parent / "runs").mkdir()
    folder = copy.rename(experiment.run_folder("End-to-end"))
    monkeypatch.setenv("FGVC_FRESH", "0")  # to be set back
    ask_for_fresh_runs()
    monkeypatch.setattr(runs, "train", no_training)
    assert experiment.find("End-to-end").folder == folder and (folder / "metrics.json").exists()


def test_run_that_was_copied_back_moves_aside_again(copy, monkeypatch):
    monkeypatch.setenv("FGVC_FRESH", "0")  # to be set back
    ask_for_fresh_runs()
    names = []
    for _ in range(3):
        runs.move_aside(copy)
        (new,) = {path.name for path in (copy.parent / "replaced").iterdir()} - set(names)
        names.append(new)
        shutil.copytree(copy.parent / "replaced" / new, copy, dirs_exist_ok=True)
    assert [name.removeprefix(names[0]) for name in names] == ["", "-2", "-3"]


def test_metrics_are_written_last(tiny, splits, copy, monkeypatch):
    """Where the evaluation fails there are none, and the next call ends the run without training again."""
    expected = json.loads((copy / "metrics.json").read_text())
    for name in ("metrics.json", "predictions.csv", "history.csv", "trajectories.csv"):
        (copy / name).unlink()

    def fails(*args, **options):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "predict", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            train_or_load(tiny, splits, 0, copy)
    assert not (copy / "metrics.json").exists()
    monkeypatch.setattr(loop, "train_one_epoch", no_training)
    train_or_load(tiny, splits, 0, copy)
    assert json.loads((copy / "metrics.json").read_text()) == expected  # also the provenance, which is the training's
    assert len(pd.read_csv(copy / "history.csv")) == 2  # written anew from the checkpoint
    newest = max((path for path in copy.iterdir() if path.name in FILES), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "metrics.json"


def test_damaged_metrics_are_refused_with_a_sentence(tiny, splits, copy):
    (copy / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json is not valid JSON"):
        train_or_load(tiny, splits, 0, copy)


def test_run_is_reused_when_only_table_1_would_be_trained_longer(tiny, splits, copy):
    longer = replace(tiny, table1_steps=tiny.table1_steps + 1)
    made = (copy / "checkpoint.pt").stat().st_mtime_ns
    train_or_load(longer, splits, 0, copy, announce=pytest.fail)
    assert (copy / "checkpoint.pt").stat().st_mtime_ns == made


# --- other processes, interruption, leftovers


def test_second_process_waits_for_the_first_and_takes_its_result(tiny, splits, copy, monkeypatch):
    """The lock is held elsewhere; its holder finishes the run once it is told that somebody waits."""
    monkeypatch.setattr(runs, "train", no_training)
    metrics = (copy / "metrics.json").read_text()
    (copy / "metrics.json").unlink()
    taken, wanted, said = threading.Event(), threading.Event(), []

    def other():
        with locked(copy / ".lock"):
            taken.set()
            assert wanted.wait(60)
            (copy / "metrics.json").write_text(metrics)

    def announce(line):
        said.append(line)
        wanted.set()

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(other)
        assert taken.wait(60)
        run = train_or_load(tiny, splits, 0, copy, announce)
        holder.result()
    assert said == ["copy: another process is training this run; waiting for its result."]
    assert run.metrics == json.loads(metrics)["test"]


@pytest.mark.parametrize("replayed", [0, 1])  # epochs of an earlier part that the interrupt lets pass
@pytest.mark.parametrize("fresh", [False, True])
def test_interrupt_says_what_is_saved_and_how_to_go_on(replayed, fresh, tiny, splits, copy, monkeypatch):
    state = read_checkpoint(copy / "checkpoint.pt")
    state["history"] = state["history"][:1]
    torch.save(state, copy / "checkpoint.pt")
    (copy / "history.csv").unlink()
    (copy / "metrics.json").unlink()
    if fresh:
        monkeypatch.setenv("FGVC_FRESH", "0")  # long ago: what is here has been made since

    def interrupted(*args):
        yield from state["history"][:replayed]
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", interrupted)
    said = []
    with pytest.raises(KeyboardInterrupt):
        train_or_load(tiny, splits, 0, copy, said.append)
    how = "the same call or command" + " without --fresh" * fresh
    assert said[-1] == (
        f"copy: interrupted after epoch 1 of 2, whose state is saved in {copy}; {how} goes on from there."
    )
    assert not replayed or len(pd.read_csv(copy / "history.csv")) == 1
    with locked(copy / ".lock", pytest.fail):
        pass  # free again


def test_interrupt_in_the_first_epoch_promises_nothing(tiny, splits, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", interrupted)
    said = []
    with pytest.raises(KeyboardInterrupt):
        train_or_load(tiny, splits, 0, tmp_path / "run", said.append)
    assert said[-1].startswith("run: interrupted in the first epoch, of which nothing is saved")


def test_what_a_killed_process_was_writing_is_cleared(tiny, splits, copy, monkeypatch):
    (copy / "metrics.json").unlink()
    (copy / ".checkpoint.pt.12345.tmp").write_bytes(b"half")
    monkeypatch.setattr(loop, "train_one_epoch", no_training)
    train_or_load(tiny, splits, 0, copy)
    assert not list(copy.glob(".*.tmp"))


def test_previous_checkpoint_goes_when_the_run_is_done(finished):
    assert not (finished[0].folder / "checkpoint.previous.pt").exists()


@pytest.mark.parametrize("content", [None, b"half"], ids=["missing", "damaged"])
def test_finished_run_without_its_weights_says_how_to_train_it_again(tiny, splits, copy, content):
    (copy / "checkpoint.pt").unlink()
    if content:
        (copy / "checkpoint.pt").write_bytes(content)
    run = train_or_load(tiny, splits, 0, copy)  # the scores are there
    with pytest.raises(ValueError, match=rf"checkpoint.pt.*; delete {copy} to train this run again\."):
        _ = run.model


@pytest.mark.parametrize(
    "change", [lambda state: state["model"].popitem(), lambda state: state.pop("model")], ids=["one less", "none"]
)
def test_finished_run_whose_weights_no_longer_fit_says_how_to_train_it_again(tiny, splits, copy, change):
    """As after a change of the library's networks."""
    state = read_checkpoint(copy / "checkpoint.pt")
    change(state)
    torch.save(state, copy / "checkpoint.pt")
    run = train_or_load(tiny, splits, 0, copy)
    with pytest.raises(ValueError, match=rf"checkpoint.pt does not fit this version of fgvclib; delete {copy} to"):
        _ = run.model
