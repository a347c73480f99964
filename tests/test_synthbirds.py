"""Tests of the synthetic bird data set: the files, the boxes, the species, and what is refused."""

import dataclasses
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import synthbirds
from synthbirds import dataset, scene
from synthbirds.bird import BODY_PLANS

SMALL = {"num_classes": 3, "train_per_class": 2, "test_per_class": 1, "image_size": 48}


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _table(root: Path, name: str) -> list[list[str]]:
    return [line.split() for line in (root / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return synthbirds.generate(tmp_path_factory.mktemp("birds") / "set", **SMALL, workers=0)


def test_layout(small):
    images = _table(small, "images.txt")
    assert [row[0] for row in images] == [str(i) for i in range(1, 10)]
    assert images[0][1] == "001.Plain_Marshfinch/Plain_Marshfinch_0001.jpg"
    assert images[8][1] == "003.Rufous-capped_Marshfinch/Rufous-capped_Marshfinch_0003.jpg"
    assert [row[1] for row in _table(small, "image_class_labels.txt")] == list("111222333")
    assert [row[1] for row in _table(small, "train_test_split.txt")] == list("110110110")
    assert [row[0] for row in _table(small, "bounding_boxes.txt")] == [row[0] for row in images]
    assert _table(small, "classes.txt")[1] == ["2", "002.Spectacled_Marshfinch"]
    assert len(list((small / "images").rglob("*.jpg"))) == 9
    for _, path in images:
        with Image.open(small / "images" / path) as image:
            assert (image.size, image.mode, image.format) == ((48, 48), "RGB", "JPEG")


def test_same_bytes_whatever_the_workers(small, tmp_path):
    again = synthbirds.generate(tmp_path / "set", **SMALL, workers=2)
    assert _files(again) == _files(small)


PLAIN = """
import synthbirds
print("drawn", synthbirds.generate("set", num_classes=3, train_per_class=2, test_per_class=1, image_size=48, workers=2))
"""


@pytest.mark.parametrize("piped", [False, True])
def test_plain_script_draws_once_with_processes(small, tmp_path, piped):
    """No `if __name__ == "__main__":`, which a process pool would need, and in the other case not even a file."""
    (tmp_path / "plain.py").write_text(PLAIN)
    environment = os.environ | {"PYTHONPATH": str(Path(synthbirds.__file__).parent.parent)}
    command = [sys.executable, "-" if piped else "plain.py"]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    found = subprocess.run(command, input=PLAIN if piped else None, **options)
    assert (found.returncode, found.stdout) == (0, "drawn set\n"), found.stderr
    assert _files(tmp_path / "set") == _files(small)


def test_worker_that_ends_early_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended early"):
        synthbirds.generate(tmp_path / "set", **SMALL, workers=2)
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, sys, synthbirds
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
synthbirds.generate("set", num_classes=3, train_per_class=2, test_per_class=1, image_size=48, workers=int(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_cannot_be_written_are_one_sentence(tmp_path, workers):
    environment = os.environ | {"PYTHONPATH": str(Path(synthbirds.__file__).parent.parent)}
    command = [sys.executable, "-B", "-c", FULL, str(workers)]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    last = found.stderr.splitlines()[-1]
    assert re.fullmatch(r"OSError: The birds could not be drawn into set \(.*File too large.*\): make room .*", last)
    assert "draw_as_worker" not in found.stderr and list(tmp_path.iterdir()) == []


def test_other_seed_gives_other_pictures(small, tmp_path):
    other = synthbirds.generate(tmp_path / "set", **SMALL, seed=1, workers=0)
    name = "images/001.Plain_Marshfinch/Plain_Marshfinch_0001.jpg"
    assert (other / name).read_bytes() != (small / name).read_bytes()


def test_pictures_do_not_depend_on_the_extent(small, tmp_path):
    larger = SMALL | {"num_classes": 4, "train_per_class": 3}
    files = _files(synthbirds.generate(tmp_path / "set", **larger, workers=0))
    pictures = {name: data for name, data in _files(small).items() if name.endswith(".jpg")}
    assert pictures == {name: files[name] for name in pictures}


@pytest.mark.parametrize("size", [48, 128])
def test_boxes_lie_inside_and_span_the_size_range(size):
    sides = []
    for k, species in enumerate(synthbirds.species_list(40)):
        _, (x, y, w, h) = synthbirds.draw_bird(species, np.random.default_rng([3, k]), size)
        assert x >= 0 and y >= 0 and x + w <= size and y + h <= size
        sides.append(max(w, h) / size)
    low, high = scene.SIZE_RANGE
    assert low - 2 / size <= min(sides) < 0.25
    assert 0.5 < max(sides) <= high + 2 / size


def test_boxes_are_not_centred():
    centres = []
    for k in range(40):
        x, y, w, h = synthbirds.paint_scene(synthbirds.species_list(1)[0], np.random.default_rng([4, k]), 40).box
        centres.append(((x + w / 2) / 40, (y + h / 2) / 40))
    assert np.std(centres, axis=0).min() > 0.12


@pytest.mark.parametrize("index", range(0, 40, 3))
def test_box_is_where_the_bird_changes_the_picture(index):
    species = synthbirds.species_list(40)[index]
    layers = synthbirds.paint_scene(species, np.random.default_rng([5, index]), 128)
    nothing, plain = Image.new("RGBA", (128, 128)), Image.new("RGB", (128, 128), (255, 0, 255))
    layers = dataclasses.replace(layers, occluders=nothing, landscape=plain)
    with_bird = np.asarray(synthbirds.compose(layers), int)
    without = np.asarray(synthbirds.compose(dataclasses.replace(layers, bird=nothing)), int)
    changed = np.abs(with_bird - without).max(axis=2)
    x, y, w, h = (int(v) for v in layers.box)
    outside = changed.copy()
    outside[y : y + h, x : x + w] = 0
    assert outside.max() < 85  # faint edge pixels at most
    clear = changed > 25
    assert clear[y].any() and clear[y + h - 1].any() and clear[:, x].any() and clear[:, x + w - 1].any()


def test_occluders_never_hide_most_of_the_bird():
    hidden = []
    for k in range(40):
        layers = synthbirds.paint_scene(synthbirds.species_list(40)[k], np.random.default_rng([6, k]), 48)
        bird = np.asarray(layers.bird.getchannel("A")) >= scene.BOX_ALPHA
        hidden.append(np.asarray(layers.occluders.getchannel("A"))[bird].mean() / 255)
    assert max(hidden) <= scene.MAX_HIDDEN
    assert 0.2 < np.mean(np.array(hidden) > 0) < 0.8


def test_a_bird_is_drawn_in_the_requested_size():
    for k, species in enumerate(synthbirds.species_list(40)):
        layer, _ = synthbirds.paint_bird(species, np.random.default_rng(k), 120)
        left, top, right, bottom = layer.getchannel("A").point(lambda a: 255 * (a > 128)).getbbox()
        assert abs(max(right - left, bottom - top) - 120) <= 3, species.name


def _differences(a: synthbirds.Species, b: synthbirds.Species) -> int:
    marks_a, marks_b = synthbirds.field_marks(a), synthbirds.field_marks(b)
    return sum(marks_a[name] != marks_b[name] for name in marks_a)


def test_sisters_differ_by_one_or_two_marks_and_all_species_differ():
    species = synthbirds.species_list(40)
    assert len({s.name for s in species}) == 40
    assert {s.genus for s in species} == set(BODY_PLANS)
    single = 0
    for a, b in itertools.combinations(species, 2):
        if a.genus == b.genus:
            assert 1 <= _differences(a, b) <= 2, (a.name, b.name)
            single += _differences(a, b) == 1
    assert single >= 30


def test_every_mark_shows():
    """Sisters in the same pose differ in at least some pixels, clearly."""
    species = synthbirds.species_list(40)
    layers = {s: synthbirds.paint_bird(s, np.random.default_rng(7), 110)[0].convert("RGBa") for s in species}
    for a, b in itertools.combinations(species, 2):
        if a.genus != b.genus:
            continue
        pair = layers[a], layers[b]
        size = tuple(max(image.size[i] for image in pair) for i in range(2))
        one, two = (np.asarray(image.crop((0, 0, *size)), int) for image in pair)
        assert (np.abs(one - two).max(axis=2) > 40).sum() >= 25, (a.name, b.name)


def test_first_species_always_hold_sisters():
    for count in range(2, 41):
        genera = [s.genus for s in synthbirds.species_list(count)]
        assert len(set(genera)) < len(genera)


def test_same_parameters_return_at_once(small, monkeypatch):
    monkeypatch.setattr(dataset, "_write", lambda *_: pytest.fail("drawn again"))
    before = _files(small)
    assert synthbirds.generate(small, **SMALL, workers=0) == small
    assert _files(small) == before


def test_another_data_set_is_refused(small):
    with pytest.raises(ValueError, match="seed 0 instead of 5.*choose another folder, or delete"):
        synthbirds.generate(small, **SMALL, seed=5)


def test_other_generator_version_is_refused(small, monkeypatch):
    monkeypatch.setattr(dataset, "GENERATOR_VERSION", synthbirds.GENERATOR_VERSION + 1)
    with pytest.raises(ValueError, match="generator_version"):
        synthbirds.generate(small, **SMALL)


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"\xff\xfe\xff", b"null"])
def test_damaged_record_is_named(tmp_path, content):
    record = tmp_path / "synthbirds.json"
    record.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{record} is damaged: delete the folder {tmp_path} to have the birds drawn"):
        synthbirds.generate(tmp_path, **SMALL)
    assert record.read_bytes() == content


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a synthetic bird data set"):
        synthbirds.generate(tmp_path, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failed_run_leaves_no_root(tmp_path, monkeypatch):
    calls = itertools.count()

    def fail_half_way(species, rng, image_size):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return synthbirds.draw_bird(species, rng, image_size)

    monkeypatch.setattr(dataset, "draw_bird", fail_half_way)
    with pytest.raises(KeyboardInterrupt):
        synthbirds.generate(tmp_path / "set", **SMALL, workers=0)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_cleared_after_a_day(small, tmp_path):
    dead, other = tmp_path / ".set.abcdefgh.partial", tmp_path / ".set.stuvwxyz.partial"
    for folder in (dead, other):
        folder.mkdir()
        (folder / "half.jpg").write_bytes(b"half")
    os.utime(dead, (time.time() - 25 * 3600,) * 2)
    root = synthbirds.generate(tmp_path / "set", **SMALL, workers=0)
    assert _files(root) == _files(small)
    assert {path.name for path in tmp_path.iterdir()} == {"set", other.name}


def test_an_empty_root_is_filled_and_as_open_as_any_folder(tmp_path):
    (tmp_path / "set").mkdir()
    mode = (tmp_path / "set").stat().st_mode
    root = synthbirds.generate(tmp_path / "set", **SMALL, workers=0)
    assert root.stat().st_mode == mode
    assert (root / "images.txt").is_file()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_overtaken(small, tmp_path, monkeypatch, seed):
    """Another run with seed 0 finishes while this one draws: its data set stays, and serves this run if it can."""
    write = dataset._write

    def write_slowly(*arguments):
        write(*arguments)
        shutil.copytree(small, tmp_path / "set")

    monkeypatch.setattr(dataset, "_write", write_slowly)
    if seed == 0:
        assert synthbirds.generate(tmp_path / "set", **SMALL, workers=0) == tmp_path / "set"
    else:
        with pytest.raises(ValueError, match="holds another synthetic bird data set .seed 0 instead of 1"):
            synthbirds.generate(tmp_path / "set", **SMALL, seed=seed, workers=0)
    assert _files(tmp_path / "set") == _files(small)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0, but there are 40 species"),
        ({"num_classes": 41}, "num_classes is 41, but there are 40 species"),
        ({"train_per_class": 0}, "train_per_class is 0: give a whole number of at least 1"),
        ({"test_per_class": -1}, "test_per_class is -1: give a whole number of at least 1"),
        ({"image_size": 31}, "image_size is 31: give a whole number of at least 32"),
        ({"image_size": 64.5}, "image_size is 64.5: give a whole number"),
        ({"seed": -1}, "seed is -1: give a whole number of at least 0"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_bad_input(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        synthbirds.generate(tmp_path / "set", **(SMALL | bad))
    assert list(tmp_path.iterdir()) == []
