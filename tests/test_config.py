"""Profiles and overrides: strict names and types, and a hash for every value."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fgvclib.config import (
    DATASETS,
    PAPER,
    PROFILES,
    SYNTHBIRDS_KEYS,
    Config,
    data_root,
    effective_values,
    folder_root,
    load_config,
    results_folder,
    results_root,
)
from fgvclib.study.bounds import BOUNDS
from fgvclib.study.experiment import SETTING_2, Experiment
from fgvclib.study.table2 import ROWS


def test_paper_profile_has_the_papers_values():
    config = load_config("paper")
    assert (config.lambda_att, config.lambda_aff, config.beta_att, config.beta_aff) == (16, 16, 1, 1)
    assert (config.image_size, config.crop_size, config.map_size, config.threshold) == (448, 448, 14, 0.3)
    assert (config.epochs, config.batch_size, config.learning_rate, config.lr_drop, config.lr_drops) == (
        90, 14, 0.003, 0.1, 2)  # fmt: skip
    assert (config.momentum, config.weight_decay, config.lambda_emb, config.kmax) == (0.9, 1e-3, 2, 4)
    assert (config.backbone, config.embedding_dim) == ("resnet101.tv_in1k", 512)
    assert (config.setting2_backbone, config.setting2_embedding_dim) == ("resnet101c.gluon_in1k", 1024)
    assert config.attnet_backbone == "resnet50.tv_in1k"
    assert config.validation_fraction == 0  # its epochs and settings are given: nothing is chosen


@pytest.mark.parametrize("name", PROFILES)
def test_profile_knows_its_name(name):
    assert load_config(name).profile == name


def test_teacher_gives_14_cells_without_resizing_in_the_paper_profile():
    config = load_config("paper")
    assert config.teacher_size / config.teacher_output_stride == config.map_size == 14


def test_smoke_profile_draws_less_than_the_cpu_profile():
    smoke, cpu = load_config("smoke"), load_config("cpu")
    assert smoke.num_classes < cpu.num_classes and smoke.epochs < cpu.epochs


def test_overrides_replace_values_and_nothing_else():
    config = load_config("cpu", "cub200", epochs=5, num_classes=None, lambda_att=1)
    assert (config.epochs, config.num_classes, config.lambda_att, config.dataset) == (5, None, 1, "cub200")
    expected = dataclasses.replace(load_config("cpu"), dataset="cub200", epochs=5, num_classes=None, lambda_att=1)
    assert config == expected


@pytest.mark.parametrize(
    "arguments, overrides, message",
    [
        (("huge",), {}, "'huge'; choose one of smoke, cpu, photos, paper"),
        (("cpu", "dogs"), {}, "'dogs'; choose one of synthbirds, cub200, aircraft, cars, folder"),
        (("cpu",), {"epoch": 3}, "'epoch' is not a configuration key; the keys are: .*epochs"),
        (("cpu",), {"hash": 3}, "'hash' is not a configuration key"),
        (("cpu",), {"dataset": "cub200"}, "dataset is not an override; give it as --dataset"),
    ],
)
def test_unknown_names_are_refused_and_the_known_ones_listed(arguments, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(*arguments, **overrides)


@pytest.mark.parametrize(
    "key, value, wanted",
    [("epochs", 1.5, "a valid integer"), ("epochs", "3", "a valid integer"), ("epochs", None, "a valid integer"),
     ("epochs", True, "a valid integer"), ("num_classes", 2.0, "a valid integer"), ("epochs", 0, ".* equal to 1"),
     ("workers", -1, ".* equal to 0"), ("learning_rate", "0.1", "a valid number"), ("learning_rate", True, "a valid n"),
     ("learning_rate", -1.0, ".* equal to 0"), ("learning_rate", float("inf"), "a finite number"),
     ("learning_rate", float("nan"), "a finite number"), ("validation_fraction", 1.0, "less than 1"),
     ("backbone", 50, "a valid string"), ("attnet_standardise", 1, "a valid boolean"),
     ("precision", "fp16", "'fp32' or 'bf16'"), ("classes", 3, "a valid tuple"), ("classes", "0-3", "a valid tuple")],
)  # fmt: skip
def test_value_of_the_wrong_type_or_range_is_refused_in_one_sentence(key, value, wanted):
    with pytest.raises(ValueError, match=rf"^{key} = {value!r}, but it should be {wanted}[^\n]*\.$"):
        load_config("cpu", **{key: value})


@pytest.mark.parametrize(
    "profile, overrides, message",
    [
        ("cpu", {"epochs": 3}, "epochs = 3 ends before the classifier has seen a crop, as warmup_epochs = 3; "),
        ("paper", {"epochs": 2, "warmup_epochs": 5}, "epochs = 2 ends before"),
        ("cpu", {"localisation_epochs": 1}, "localisation_epochs = 1 needs the maps of a fixed teacher"),
        ("photos", {"teacher_weights": "live"}, "localisation_epochs = 6 needs the maps of a fixed teacher"),
        ("cpu", {"fixed_box": "centre"}, 'fixed_box = "centre" leaves nothing to localise'),
        ("cpu", ROWS["Baseline"] | {"fixed_box": "teacher"}, 'fixed_box = "teacher" needs a fixed teacher'),
        ("cpu", {"classes": [1, 1]}, r"classes = \[1, 1\], but different class indices are needed"),
        ("cpu", {"classes": []}, r"classes = \[\], but different class indices are needed"),
    ],
)
def test_values_that_contradict_each_other_are_refused(profile, overrides, message):
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*\.$"):
        load_config(profile, **overrides)


@pytest.mark.parametrize("key", SYNTHBIRDS_KEYS)
def test_how_synthbirds_is_drawn_can_be_set_for_it_alone(key):
    assert getattr(load_config("cpu", "synthbirds", **{key: 64}), key) == 64
    with pytest.raises(ValueError, match=f"^{key} says how SynthBirds is drawn, but dataset is 'cars'; leave it out.$"):
        load_config("cpu", "cars", **{key: 64})


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("row", [*ROWS, *BOUNDS, SETTING_2])
def test_every_row_is_valid_in_every_profile(profile, row):
    config = Experiment(profile, "cub200").row_config(row)
    assert config.epochs > config.warmup_epochs and config.profile == profile


IDLE = ("profile", "dataset", "workers", "cut_banner")  # of PAPER, whose data set is SynthBirds


@pytest.mark.parametrize("field", [f for f in dataclasses.fields(Config) if f.name not in IDLE], ids=lambda f: f.name)
def test_hash_changes_with_any_value_that_has_an_effect(field):
    changed = copy.copy(PAPER)
    object.__setattr__(changed, field.name, "another")  # of whatever type: the hash does not check
    assert changed.hash() != PAPER.hash()
    assert len(PAPER.hash()) == 10 and set(PAPER.hash()) <= set("0123456789abcdef")


def test_hash_changes_with_profile_and_data_set():
    known = [(profile, dataset) for profile in PROFILES for dataset in DATASETS]
    assert len({load_config(*names).hash() for names in known}) == len(known)


@pytest.mark.parametrize(
    "dataset, plain, changed",
    [
        ("synthbirds", {}, {"workers": 1}),
        ("synthbirds", {}, {"cut_banner": False}),
        ("cub200", {"classes": [0, 2]}, {"classes": [0, 2], "num_classes": 3}),
    ],
)
def test_value_without_effect_changes_neither_hash_nor_folder(dataset, plain, changed):
    before, after = load_config("cpu", dataset, **plain), load_config("cpu", dataset, **changed)
    assert before.hash() == after.hash() and results_folder(before) == results_folder(after)


def test_values_stored_before_a_key_existed_mean_its_default():
    stored = PAPER.values()
    del stored["crop_margin"]
    assert effective_values(stored) == effective_values(PAPER.values())
    stored["crop_margin"] = 0.1
    assert effective_values(stored) != effective_values(PAPER.values())


@pytest.mark.parametrize("key", ["learning_rate", "lambda_att", "theta_gradient_limit"])
def test_whole_number_is_accepted_where_a_real_one_is_needed(key):
    assert getattr(load_config("cpu", **{key: 1}), key) == 1


def test_equal_configurations_have_equal_hashes():
    """A notebook parameter `16` means the same as `16.0`."""
    whole, real = load_config("cpu", lambda_att=8, beta_att=0), load_config("cpu", lambda_att=8.0, beta_att=0.0)
    assert whole == real and whole.hash() == real.hash()


@pytest.mark.parametrize("given", [range(3), [0, 1, 2], (0, 1, 2)])
def test_classes_by_index(given):
    config = load_config("cpu", "cub200", classes=given)
    assert config.classes == (0, 1, 2)
    assert json.loads(json.dumps(config.values())) == config.values()  # as runs and manifests store it
    assert (
        config.hash() == load_config("cpu", "cub200", classes=[0, 1, 2]).hash() != load_config("cpu", "cub200").hash()
    )


@pytest.mark.parametrize("given", [[True], [0.0], [-1]])
def test_what_is_not_a_class_index_is_refused(given):
    with pytest.raises(ValueError, match=f"^classes = {given[0]}, but it should be "):
        load_config("cpu", classes=given)


def test_only_aircraft_has_a_banner():
    assert {name: load_config("paper", name).cut_bottom for name in DATASETS if name != "aircraft"} == {
        "synthbirds": 0, "cub200": 0, "cars": 0, "folder": 0}  # fmt: skip
    assert load_config("paper", "aircraft").cut_bottom == 20
    assert load_config("paper", "aircraft", cut_banner=False).cut_bottom == 0


def test_roots_follow_the_environment(monkeypatch):
    monkeypatch.setenv("FGVC_DATA", "/somewhere/data")
    monkeypatch.setenv("FGVC_RESULTS", "/somewhere/results")
    assert data_root() == Path("/somewhere/data") and results_root() == Path("/somewhere/results")
    monkeypatch.delenv("FGVC_FOLDER", raising=False)
    assert folder_root() == Path("/somewhere/data/folder")
    monkeypatch.setenv("FGVC_FOLDER", "/my/photos")
    assert folder_root() == Path("/my/photos")
    monkeypatch.delenv("FGVC_DATA")
    monkeypatch.delenv("FGVC_RESULTS")
    project = Path(__file__).resolve().parent.parent
    assert data_root() == project / "data" and results_root() == project / "results"


def test_changed_values_have_a_results_folder_of_their_own(monkeypatch):
    monkeypatch.setenv("FGVC_RESULTS", "/r")
    assert results_folder(load_config("cpu")) == Path("/r/cpu-synthbirds")
    changed = load_config("cpu", "cub200", epochs=5)
    assert results_folder(changed) == Path("/r/cpu-cub200-epochs=5")
    assert results_folder(load_config("cpu", epochs=load_config("cpu").epochs)) == Path("/r/cpu-synthbirds")
    many = load_config("cpu", "cub200", classes=[0, 1, 2])
    assert results_folder(many) == Path(f"/r/cpu-cub200-{many.hash()}")


def test_results_that_an_earlier_release_named_by_hash_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    changed = load_config("cpu", epochs=5)
    old = tmp_path / f"cpu-synthbirds-{changed.hash()}"
    old.mkdir()
    assert results_folder(changed) == old


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_as_good_as_none(monkeypatch, empty):
    for name in ("FGVC_DATA", "FGVC_RESULTS", "FGVC_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    unset = data_root(), results_root(), folder_root()
    for name in ("FGVC_DATA", "FGVC_RESULTS", "FGVC_FOLDER"):
        monkeypatch.setenv(name, empty)
    assert (data_root(), results_root(), folder_root()) == unset


def test_a_tilde_in_a_variable_is_the_users_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, root in (("FGVC_DATA", data_root), ("FGVC_RESULTS", results_root), ("FGVC_FOLDER", folder_root)):
        monkeypatch.setenv(name, "~/birds")
        assert root() == tmp_path / "birds"


def test_an_installed_library_writes_into_the_home_and_not_beside_itself(tmp_path):
    site, home = tmp_path / "site-packages", tmp_path / "home"
    shutil.copytree(Path(__file__).parent.parent / "fgvclib", site / "fgvclib")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(site)}
    code = "from fgvclib import config; print(config.__file__, config.data_root(), config.results_root())"
    found = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    expected = [site / "fgvclib" / "config.py", home / "fgvclib" / "data", home / "fgvclib" / "results"]
    assert found.stdout.split() == [str(path) for path in expected], found.stderr
