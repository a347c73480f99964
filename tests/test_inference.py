"""`fgvc predict`: boxes in the pixels of the photo, photos that stay as they are, one sentence for what fails."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fgvclib.apps.predict import Recogniser, Recognition, draw, readable, readable_names, save_drawing
from fgvclib.config import training_values
from fgvclib.data.augment import to_input
from fgvclib.data.fixed_boxes import with_fixed_boxes
from fgvclib.data.loaders import PhotoDataset, evaluation_loader
from fgvclib.data.photos import open_photo
from fgvclib.model.system import build_model
from fgvclib.study.bounds import BOUNDS
from fgvclib.tools.cli import main
from fgvclib.training.checkpoints import read_checkpoint, save_checkpoint
from fgvclib.training.evaluation import predict as score

CLASSES = ["001.Red_Bird", "002.Blue_Bird", "003.Grün"]


def write_checkpoint(path, config, epochs=None):
    """A system that says class 1 of everything and crops s = (0.5, 0.6), t = (-0.25, 0.6): see `BOX_BY_HAND`."""
    torch.manual_seed(0)
    model = build_model(config, len(CLASSES), pretrained=False)
    with torch.no_grad():  # the output layers of AffNet start with zero weights: their bias is the answer
        model.affnet.horizontal[-1].bias.copy_(torch.tensor([0.5, -0.25]))
        model.affnet.vertical[-1].bias.copy_(torch.tensor([0.6, 0.6]))
        model.classifier.output.weight.zero_()
        model.classifier.output.bias.copy_(torch.tensor([0.0, 2.0, 0.0]))
    history = [{}] * (config.epochs if epochs is None else epochs)
    identity = {"config": training_values(config), "seed": 0, "class_names": CLASSES}
    save_checkpoint(path, identity | {"model": model.state_dict(), "history": history})
    return path


# x: from (t - s + 1) / 2 = 0.125 to (t + s + 1) / 2 = 0.625 of the width; y: from 0.5 to 1.1, cut off at 1.
def box_by_hand(width: int, height: int) -> tuple[int, int, int, int]:
    return width // 8, height // 2, 5 * width // 8, height


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint.pt", tiny)


@pytest.fixture(scope="module")
def recogniser(checkpoint):
    return Recogniser(checkpoint)


def phone_photo(path):
    """An upright photo of 160x80 as a phone stores it: 80x160 and turned (orientation 6); its left half is white."""
    upright = np.zeros((80, 160, 3), dtype=np.uint8)
    upright[:, :80] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    assert Image.open(path).size == (80, 160)
    return path


def test_box_is_theta_clipped_to_the_upright_photo(recogniser, tmp_path):
    found = recogniser(open_photo(phone_photo(tmp_path / "phone.jpg")))
    assert found.box == (20, 40, 100, 80) == box_by_hand(160, 80)
    assert found.class_name == "002.Blue_Bird"
    assert found.probability == pytest.approx(np.exp(2) / (np.exp(2) + 2))


def test_network_sees_the_upright_photo(recogniser, tmp_path, tiny, monkeypatch):
    seen = []
    forward = recogniser.model.forward
    monkeypatch.setattr(recogniser.model, "forward", lambda images: seen.append(images) or forward(images))
    recogniser(open_photo(phone_photo(tmp_path / "phone.jpg")))
    (image,) = seen[0]
    assert image.shape == (3, tiny.image_size, tiny.image_size)
    assert image[:, :, :28].min() > 0.9 and image[:, :, 36:].max() < -0.9  # left half white, right half black


def test_photo_enters_as_it_does_when_the_system_is_scored(splits, tiny):
    item = PhotoDataset(splits.test, tiny)[4]["image"]
    assert torch.equal(to_input(open_photo(splits.test["path"][4]), tiny), item)


def test_centre_is_cut_as_when_the_run_is_scored(splits, tiny, tmp_path):
    config = replace(tiny, **BOUNDS["Centre crop"], crop_margin=0.1)
    path = write_checkpoint(tmp_path / "checkpoint.pt", config)
    state = read_checkpoint(path)
    state["model"]["classifier.output.weight"].normal_()  # an answer that depends on the photo
    save_checkpoint(path, state)
    recogniser = Recogniser(path)
    photos = with_fixed_boxes(splits, config).test
    for _, scored in score(recogniser.model, evaluation_loader(photos, config), photos).iterrows():
        found = recogniser(open_photo(scored["path"]))
        assert found.probability == pytest.approx(scored["probability"], abs=1e-5)
        assert found.box == (7, 7, 57, 57)  # 0.7 · 1.1 of 64 pixels, in the middle


@pytest.mark.parametrize("row, cut_to", [("Oracle crop", "true boxes"), ("Teacher crop", "boxes of an ImageNet")])
def test_crops_that_no_new_photo_has_are_refused_in_a_sentence(tiny, photo, tmp_path, capsys, row, cut_to):
    path = write_checkpoint(tmp_path / "checkpoint.pt", replace(tiny, **BOUNDS[row]))
    assert predict(photo, "--checkpoint", path) == 2
    err = capsys.readouterr().err
    assert cut_to in err and str(path) in err and err.count("\n") == 1


def test_drawing_has_the_box_where_the_box_is():
    grey = Image.new("RGB", (400, 200), (128, 128, 128))
    picture = np.asarray(draw(grey, Recognition("a", 0.5, (100, 80, 300, 160)))).astype(int)
    changed = (picture != 128).any(axis=2)
    rows, columns = np.flatnonzero(changed[:, 250]), np.flatnonzero(changed[120])
    assert (columns.min(), columns.max()) == (100, 299) and (rows.min(), rows.max()) == (80, 159)
    assert not changed[100:150, 110:290].any()  # the inside is left as it is
    assert grey.getpixel((100, 80)) == (128, 128, 128)  # and so is the photo


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (400, 200, 400, 200), (0, 0, 400, 200), (399, 0, 400, 1)])
@pytest.mark.parametrize("size", [(400, 200), (1, 1)])
def test_any_box_can_be_drawn(size, box):
    box = tuple(min(corner, side) for corner, side in zip(box, size * 2, strict=True))
    assert draw(Image.new("RGB", size), Recognition("long_name " * 9, 1.0, box)).size == size


def test_drawing_of_a_huge_photo_is_made_smaller():
    assert draw(Image.new("RGB", (8192, 2)), Recognition("a", 1.0, (0, 0, 4096, 2))).size == (2048, 1)


@pytest.mark.parametrize(
    "name, shown",
    [("014.Indigo_Bunting", "Indigo Bunting"), ("Boeing 737-200", "Boeing 737-200"), ("v1.5_x", "v1.5 x")],
)
def test_class_names_are_readable(name, shown):
    assert readable(name) == shown


def test_names_that_would_read_alike_stay_whole():
    names = ["001.Crow", "002.Wren", "003.Crow", "Black_Bird", "Black Bird"]
    assert readable_names(names) == ["001.Crow", "Wren", "003.Crow", "Black_Bird", "Black Bird"]


# --- the command


def predict(*arguments) -> int:
    return main(["predict", *map(str, arguments)])


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "photos").mkdir()
    return phone_photo(tmp_path / "photos" / "Vögel im Park.jpg")


def test_command_prints_draws_and_writes_tables(photo, checkpoint, tmp_path, capsys):
    before = photo.read_bytes()
    tables = {"--csv": tmp_path / "t" / "table.csv", "--json": tmp_path / "t" / "table.json"}
    options = [text for pair in tables.items() for text in pair]
    assert predict(photo, "--checkpoint", checkpoint, *options) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.split()[-8:] == ["002.Blue_Bird", "78.7%", "20", "40", "100", "80", "160", "80"]
    drawing = photo.with_name("Vögel im Park.jpg.box.png")
    assert Image.open(drawing).size == (160, 80)
    (row,) = json.loads(tables["--json"].read_text())
    assert row.pop("probability") == pytest.approx(np.exp(2) / (np.exp(2) + 2))
    expected = {"photo": str(photo), "class": "002.Blue_Bird", "x1": 20, "y1": 40, "x2": 100, "y2": 80}
    assert row == expected | {"width": 160, "height": 80, "drawing": str(drawing)}
    with tables["--csv"].open(encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert {name: line[name] for name in expected} == {name: str(value) for name, value in expected.items()}
    assert photo.read_bytes() == before
    assert {path.name for path in photo.parent.iterdir()} == {photo.name, drawing.name}


def test_second_run_replaces_its_drawings(photo, checkpoint, tmp_path):
    for _ in range(2):
        assert predict(photo, photo, "--checkpoint", checkpoint, "--output", tmp_path / "new" / "folder") == 0
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [f"{photo.name}.box.png"]
    assert [path.name for path in photo.parent.iterdir()] == [photo.name]


def test_drawings_among_the_photos_are_passed_over(photo, checkpoint, capsys):
    for _ in range(2):
        assert predict(*sorted(photo.parent.iterdir()), "--checkpoint", checkpoint) == 0
    assert [path.name for path in sorted(photo.parent.iterdir())] == [photo.name, f"{photo.name}.box.png"]
    assert capsys.readouterr().out.count("Blue_Bird") == 2


def test_name_that_is_not_utf8_costs_no_answer(photo, checkpoint, tmp_path, capsys):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xf6we.jpg"))
    shutil.copy(photo, odd)
    broken = odd.with_name(os.fsdecode(b"\xe4.jpg"))
    broken.write_text("no photo")
    tables = ["--csv", tmp_path / "table.csv", "--json", tmp_path / "table.json"]
    assert predict(odd, broken, photo, "--checkpoint", checkpoint, *tables) == 1
    out, err = capsys.readouterr()
    assert out.count("Blue_Bird") == 2 and "M\\xf6we.jpg" in out and "\\xe4.jpg can" in err
    names = [row["photo"] for row in json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))]
    assert names == [str(tmp_path / "M\\xf6we.jpg"), str(photo)]
    assert "M\\xf6we.jpg" in (tmp_path / "table.csv").read_text(encoding="utf-8")
    assert odd.with_name(f"{odd.name}.box.png").exists()


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_folder_in_place_of_a_table_is_told_in_a_sentence(photo, checkpoint, tmp_path, option, capsys):
    (tmp_path / "folder").mkdir()
    assert predict(photo, "--checkpoint", checkpoint, option, tmp_path / "folder") == 1
    assert capsys.readouterr().err == f"{tmp_path / 'folder'} is a folder; give the name of a file.\n"


def test_reader_that_has_read_enough_is_no_error(tmp_path):
    """`fgvc --help | head -1`, with the reader gone before the first line."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fgvclib", "--help"]
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, text=True)
    os.close(writing)
    assert (found.returncode, found.stderr) == (1, "")


def test_what_fails_gets_a_sentence_and_the_others_are_predicted(photo, checkpoint, tmp_path, capsys):
    (tmp_path / "note.jpg").write_text("no photo")
    assert predict(tmp_path / "gone.jpg", tmp_path / "note.jpg", photo, "--checkpoint", checkpoint) == 1
    out, err = capsys.readouterr()
    assert str(photo) in out and "gone" not in out
    assert err.splitlines() == [
        f"{tmp_path / 'gone.jpg'} cannot be read as a photo (there is no such file); check the path.",
        f"{tmp_path / 'note.jpg'} cannot be read as a photo (its format is not known here); save it as JPEG or PNG.",
    ]
    assert predict(tmp_path / "gone.jpg", "--checkpoint", checkpoint) == 1  # nothing at all
    assert capsys.readouterr().out == ""


def test_no_file_but_a_drawing_is_replaced(photo, checkpoint, tmp_path, capsys):
    """Neither another picture where the drawing belongs, nor the drawing of another photo of this name."""
    other = photo.with_name(f"{photo.name}.box.png")
    Image.new("RGB", (5, 5)).save(other)
    content = other.read_bytes()
    assert predict(photo, "--checkpoint", checkpoint) == 1
    out, err = capsys.readouterr()
    assert "002.Blue_Bird" in out and other.read_bytes() == content
    assert err == (
        f"{other} cannot be written (a file of that name is there that is not a drawing of this command); "
        "choose another --output.\n"
    )
    (tmp_path / "more").mkdir()
    namesake = phone_photo(tmp_path / "more" / photo.name)
    assert predict(photo, namesake, "--checkpoint", checkpoint, "--output", tmp_path / "out") == 1
    assert "another photo of the same name was drawn there" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_table_does_not_replace_a_photo_or_the_checkpoint(photo, checkpoint, option, capsys):
    for target in (photo, checkpoint):
        content = target.read_bytes()
        assert predict(photo, "--checkpoint", checkpoint, option, target) == 2
        assert target.read_bytes() == content
        assert "is a photo or the checkpoint; choose another name" in capsys.readouterr().err


def test_drawing_that_can_not_be_written_does_not_cost_the_answer(photo, checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert predict(photo, "--checkpoint", checkpoint, "--output", tmp_path / "file") == 1
    out, err = capsys.readouterr()
    assert "002.Blue_Bird" in out
    assert err.count("\n") == 1 and "cannot be written" in err and err.endswith("choose another --output.\n")


def test_damaged_drawing_is_not_taken_for_one(tmp_path):
    (tmp_path / "a.box.png").write_bytes(b"\x89PNG")
    with pytest.raises(FileExistsError):
        save_drawing(Image.new("RGB", (2, 2)), tmp_path / "a.box.png")


# --- checkpoints


def damaged(state):
    del state["model"]["classifier.output.bias"]


def of_a_later_version(state):
    state["config"]["unheard_of"] = 1


def of_an_earlier_version(state):
    state["format"] -= 1


@pytest.mark.parametrize("change", [damaged, of_a_later_version, of_an_earlier_version])
def test_checkpoint_that_does_not_fit_is_refused(photo, checkpoint, tmp_path, capsys, change):
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "other.pt")
    assert predict(photo, "--checkpoint", tmp_path / "other.pt") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{tmp_path / 'other.pt'} ") and "this version of fgvclib; " in err and err.count("\n") == 1


def test_what_is_no_checkpoint_is_refused(photo, tmp_path, capsys):
    for path, wrong in (
        (photo, "is not a checkpoint"),
        (tmp_path / "gone.pt", "does not exist"),
        (tmp_path, "is not a file"),
    ):
        assert predict(photo, "--checkpoint", path) == 2
        err = capsys.readouterr().err
        assert wrong in err and err.endswith("give the checkpoint.pt in a run's folder.\n") and err.count("\n") == 1


@pytest.mark.parametrize("missing", ["config", "class_names", "history", "model"])
def test_checkpoint_of_something_else_is_refused(photo, checkpoint, tmp_path, capsys, missing):
    """Such as the attnet.pt beside that of ELoPE, which has neither class names nor a history."""
    state = {name: value for name, value in read_checkpoint(checkpoint).items() if name != missing}
    save_checkpoint(tmp_path / "attnet.pt", state)
    for command in (["predict", photo, "--checkpoint"], ["export"]):
        assert main([*map(str, command), str(tmp_path / "attnet.pt")]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"{tmp_path / 'attnet.pt'} is not a checkpoint of this version of fgvclib; give the")
        assert err.count("\n") == 1


def test_full_gpu_is_not_blamed_on_the_checkpoint(checkpoint, monkeypatch):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("fgvclib.apps.predict.default_device", full)
    with pytest.raises(torch.OutOfMemoryError):
        Recogniser(checkpoint)


def test_unfinished_training_and_a_baseline_are_mentioned(tiny, photo, tmp_path, capsys):
    silent = {"lambda_att": 0.0, "lambda_aff": 0.0, "beta_att": 0.0, "beta_aff": 0.0}
    path = write_checkpoint(tmp_path / "baseline.pt", replace(tiny, **silent), epochs=1)
    assert predict(photo, "--checkpoint", path) == 0
    out, err = capsys.readouterr()
    assert out.split()[-6:] == ["0", "0", "160", "80", "160", "80"]
    assert err.splitlines() == [
        "The training is not finished: epoch 1 of 2.",
        "This system does not localise: every box is the whole photo.",
    ]
