"""The explorer: its numbers against independent arithmetic, its picture, its widgets."""

from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from types import SimpleNamespace

import ipywidgets as widgets
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from fgvclib.apps import canvas, explorer
from fgvclib.apps.canvas import Panel, attention_picture, bars_picture, compose, mask_picture
from fgvclib.apps.explorer import ATTNET, TEACHER, Explorer, ExplorerPanel, answer, read_upload
from fgvclib.data.index import BOX
from fgvclib.figures import BOX_STYLES, photo_batch
from fgvclib.model.geometry import theta_to_box
from fgvclib.model.system import build_model
from fgvclib.study.table2 import ROWS
from fgvclib.systems import build_network
from fgvclib.utils.progress import HEADLESS


@pytest.fixture(scope="module")
def models(tiny):
    """The end-to-end model with an AffNet that answers something, the baseline, two rivals; nothing is trained."""
    torch.manual_seed(0)
    built = {
        row: build_model(replace(tiny, **ROWS[row]), 3, pretrained=False).eval() for row in ROWS if "No" not in row
    }
    for network in (built["End-to-end"].affnet.horizontal, built["End-to-end"].affnet.vertical):
        torch.nn.init.normal_(network[-1].weight, std=0.05)
    rivals = {name: build_network(replace(tiny, system=name), 3, pretrained=False) for name in ("finetune", "stn")}
    torch.nn.init.normal_(rivals["stn"].theta.weight, std=0.5)
    return built | {name: network.eval() for name, network in rivals.items()}


@pytest.fixture
def explore(tiny, splits, models) -> Explorer:
    experiment = SimpleNamespace(
        config=tiny,
        splits=splits,
        is_trained=lambda row: row in models,
        trained=lambda row: SimpleNamespace(model=models[row]),
    )
    return Explorer(experiment)


def photo_file(size=(40, 30), colour="red", **options) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, **{"format": "jpeg"} | options)
    return buffer.getvalue()


# --- the numbers


def test_exact_box_iou_and_affnets_answer_are_those_of_plain_arithmetic(models, tiny):
    model, tau, sharpness = models["End-to-end"], 0.6, 20.0
    image, attention = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 14, 14)
    result = answer(model, image, attention, tau, sharpness, tiny)
    values = attention[0, 0].numpy()
    values = (values - values.min()) / (values.max() - values.min())
    rows, columns = np.nonzero(values >= tau)
    hull = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 14
    assert result.boxes[0].numpy() == pytest.approx(hull)
    mask = 1 / (1 + np.exp(-sharpness * np.maximum(values - tau, 0)))
    assert result.mask.numpy() == pytest.approx(mask, abs=1e-5)
    horizontal = model.affnet.horizontal(torch.from_numpy(mask.max(axis=0, keepdims=True)).float())[0].tolist()
    vertical = model.affnet.vertical(torch.from_numpy(mask.max(axis=1)[None]).float())[0].tolist()
    theta = torch.tensor([[horizontal[0], vertical[0], horizontal[1], vertical[1]]])
    own = theta_to_box(theta)[0].detach().numpy()
    assert result.boxes[1].numpy() == pytest.approx(own, abs=1e-4)
    corners = np.maximum(hull[:2], own[:2]), np.minimum(hull[2:], own[2:])
    shared = np.prod(np.maximum(corners[1] - corners[0], 0))
    areas = [np.prod(box[2:] - box[:2]) for box in (hull, own)]
    assert result.iou == pytest.approx(shared / (sum(areas) - shared), abs=1e-4)
    assert result.probabilities.sum(dim=1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_with_the_trained_values_affnets_crop_is_the_systems_own(explore, models, monkeypatch, margin):
    monkeypatch.setattr(models["End-to-end"], "crop_margin", margin)
    photo = explore.test_photo(4)
    with torch.no_grad():
        output = models["End-to-end"](photo.image)
    trained = explore.as_trained("End-to-end")
    result = answer(models["End-to-end"], photo.image, output.attention, *trained, explore.config)
    assert torch.allclose(result.views[1], output.crop[0], atol=1e-4)
    assert torch.allclose(result.probabilities[1], output.logits[0].softmax(dim=0), atol=1e-4)


def test_agreement_of_an_affnet_that_answers_the_whole_image_is_the_area_of_the_exact_boxes(
    explore, models, monkeypatch, tiny, splits
):
    model = models["End-to-end"]
    monkeypatch.setattr(model.affnet, "estimate", lambda mask: torch.tensor([[1.0, 1, 0, 0]] * len(mask)))
    images = photo_batch(splits.validation, tiny)
    with torch.no_grad():
        maps = model.attnet(images).squeeze(1).numpy()
    areas = []
    for values in maps:
        rows, columns = np.nonzero(values >= values.min() + 0.9 * (values.max() - values.min()))
        areas.append((np.ptp(rows) + 1) * (np.ptp(columns) + 1) / 14**2)
    assert explore.agreement("End-to-end", [0.5, 0.9])[0.9] == pytest.approx(np.mean(areas), abs=1e-5)


# --- the picture


def test_rows_offered_are_those_that_are_trained_the_whole_method_first(explore):
    assert explore.rows == ["End-to-end", "Baseline"]


def test_every_setting_gives_a_picture_of_the_same_size(explore):
    sizes = {explore.draw(row, explore.test_photo(0), source, 0.9)[0].size
             for row in explore.rows for source in (ATTNET, TEACHER)}  # fmt: skip
    assert len(sizes) == 1


def test_picture_says_at_which_size_attnet_sees_the_photo(explore, models, monkeypatch):
    drawn = []
    monkeypatch.setattr(explorer, "compose", lambda panels, legend: drawn.extend(panels))
    monkeypatch.setattr(models["End-to-end"].attnet, "input_size", 96)
    explore.draw("End-to-end", explore.test_photo(0))
    assert drawn[1].note == "from 96×96 pixels"


def test_sentence_says_how_many_cells_are_kept(explore):
    photo = explore.test_photo(2)
    values = explore._look("End-to-end", photo).maps[TEACHER]
    share = float(((values - values.min()) / (values.max() - values.min()) >= 0.7).float().mean())
    sentence = explore.draw("End-to-end", photo, TEACHER, 0.7)[1]
    assert sentence.startswith(f"{share:.0%} of the cells reach τ = 0.70.")
    assert explore.classes[photo.label] in sentence


def test_photo_without_a_true_box_is_drawn_without_it(explore, splits, monkeypatch):
    unboxed = splits.test.assign(**dict.fromkeys(BOX, np.nan))
    monkeypatch.setattr(explore.experiment, "splits", replace(splits, test=unboxed))
    photo = explore.test_photo(0)
    assert photo.true_box is None
    assert "With the true box" not in explore.draw("End-to-end", photo)[1]


def test_maps_are_computed_once_per_photo_and_model(explore, models, monkeypatch):
    calls = []
    real = models["End-to-end"].teacher_map
    monkeypatch.setattr(models["End-to-end"], "teacher_map", lambda images: calls.append(None) or real(images))
    photo = explore.test_photo(0)
    for tau in (0.2, 0.5, 0.8):
        explore.draw("End-to-end", photo, tau=tau)
    assert len(calls) == 1
    explore.draw("End-to-end", explore.test_photo(1))
    assert len(calls) == 2


def test_box_is_drawn_where_it_is_in_its_colour():
    panel = Panel(Image.new("RGB", (8, 8), "black"), "title", boxes={"true": (0.25, 0.5, 0.75, 1.0)})
    picture = compose([panel], {})
    left, top = canvas.SCALE * canvas.GAP, canvas.SCALE * canvas.TITLE
    side = canvas.SCALE * canvas.SIDE
    green = tuple(int(BOX_STYLES["true"]["edgecolor"][i : i + 2], 16) for i in (1, 3, 5))
    assert picture.getpixel((round(left + 0.25 * side), round(top + 0.75 * side))) == green
    assert picture.getpixel((round(left + 0.50 * side), round(top + 0.50 * side))) == green
    assert picture.getpixel((round(left + 0.50 * side), round(top + 0.75 * side))) == (0, 0, 0)


def test_map_has_the_colours_of_the_attention_maps():
    picture = np.asarray(attention_picture(torch.tensor([[0.0, 1.0], [0.5, 0.25]])))
    expected = matplotlib.colormaps["magma"]([[0, 255], [127, 63]])[..., :3]
    assert picture == pytest.approx(255 * expected, abs=1)


def test_strips_beside_the_mask_are_its_maxima():
    mask = 0.5 + 0.5 * torch.eye(4)[:, [1, 1, 1, 1]]  # the second row is set
    picture = mask_picture(mask, body=0.8, cell=10)
    assert picture.size == (50, 50)
    dark, bright = picture.getpixel((5, 15)), picture.getpixel((5, 25))
    assert dark != bright
    assert {picture.getpixel((x, 3)) for x in (5, 15, 25, 35)} == {bright}
    assert [picture.getpixel((47, y)) for y in (15, 25, 35, 45)] == [dark, bright, dark, dark]


def test_right_answer_is_among_the_bars_even_when_it_is_improbable():
    values = pd.DataFrame({"crop": [0.5, 0.3, 0.15, 0.05]}, ["a", "b", "c", "d"])
    with_answer, without = (bars_picture(values, {"crop": "#000000"}, label, count=2) for label in (3, None))
    assert with_answer != without


@pytest.mark.parametrize("names", [["001.Crow", "Tit", "003.Crow"], ["Black_Bird", "Tit", "Black Bird"]])
def test_classes_whose_names_read_alike_are_told_apart(explore, splits, monkeypatch, names):
    number = splits.test["label"].tolist().index(2)
    _, expected = explore.draw("End-to-end", explore.test_photo(number))
    monkeypatch.setattr(explore.experiment, "splits", replace(splits, class_names=names))
    alike = Explorer(explore.experiment)
    assert alike.classes == names
    _, sentence = alike.draw("End-to-end", alike.test_photo(number))
    assert sentence == expected.replace(explore.classes[2], names[2])


# --- another system beside it


def test_systems_that_are_trained_are_offered_beside_the_rows(explore):
    assert explore.others == ["End-to-end", "Baseline", "finetune", "stn"]


def test_box_and_answer_of_another_system_are_its_own(explore, models):
    photo = explore.test_photo(1)
    with torch.no_grad():
        looks = models["stn"](photo.image)
    other = explore.other("stn", photo)
    assert other.box == pytest.approx(looks.boxes[0].tolist(), abs=1e-5) and other.box != (0, 0, 1, 1)
    assert torch.allclose(other.probabilities, looks.logits["main"].softmax(dim=1), atol=1e-5)
    iou = box_iou(torch.tensor([other.box]), torch.tensor([photo.true_box]).float()).item()
    sentence = explore.draw("End-to-end", photo, beside="stn")[1]
    assert sentence.endswith(f"whose IoU with the true one is {iou:.2f}.")


@pytest.mark.parametrize("name", ["finetune", "Baseline"])
def test_system_without_a_box_shows_the_whole_photo_and_says_so(explore, name):
    photo = explore.test_photo(0)
    other = explore.other(name, photo)
    assert other.box == (0, 0, 1, 1) and not other.finds
    assert "gives no box" in explore.draw("End-to-end", photo, beside=name)[1]


def test_other_system_answers_once_per_photo(explore, models, monkeypatch):
    calls, real = [], models["stn"].predict
    monkeypatch.setattr(models["stn"], "predict", lambda images: calls.append(None) or real(images))
    photo = explore.test_photo(0)
    for tau in (0.2, 0.8):
        explore.draw("End-to-end", photo, tau=tau, beside="stn")
    assert len(calls) == 1


# --- uploads


def test_uploaded_photo_stands_upright():
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    buffer = BytesIO()
    stored = Image.new("RGB", (40, 20), "blue")
    stored.paste("red", (0, 0, 20, 20))
    stored.save(buffer, "jpeg", exif=turned, quality=95)
    photo = read_upload(buffer.getvalue(), "phone.jpg")
    assert photo.size == (20, 40)
    top, bottom = photo.getpixel((10, 4)), photo.getpixel((10, 36))
    assert top[0] > 200 > 50 > top[2] and bottom[2] > 200 > 50 > bottom[0]


@pytest.mark.parametrize("content", [b"", b"no photo", photo_file()[:200]], ids=["empty", "text", "cut off"])
def test_upload_that_is_no_photo_is_refused_with_a_sentence_that_names_the_file_alone(content):
    with pytest.raises(OSError, match=r"^bird.jpg cannot be read as a photo \(.*\); .*\.$"):
        read_upload(content, "folder/bird.jpg")


# --- the widgets


@pytest.fixture
def panel(explore) -> ExplorerPanel:
    return ExplorerPanel(explore, "End-to-end", 0)


@pytest.mark.parametrize(
    "control, value", [("tau", 0.75), ("sharpness", 300.0), ("source", TEACHER), ("photo", 5), ("beside", "stn")]
)
def test_every_control_changes_the_picture(panel, control, value):
    before = panel.image.value
    panel.controls[control].value = value
    assert panel.image.value != before


def test_model_without_attnet_says_so_and_uses_the_teachers_map(panel):
    panel.controls["row"].value = "Baseline"
    first = panel.image.value
    panel.controls["source"].value = TEACHER
    assert panel.image.value == first


def test_reset_brings_back_the_trained_values(panel):
    first = panel.image.value
    panel.controls["tau"].value, panel.controls["sharpness"].value = 0.8, 1.0
    panel.controls["reset"].click()
    assert panel.controls["tau"].value == pytest.approx(0.3) and panel.controls["sharpness"].value == 10
    assert panel.image.value == first


def upload(panel: ExplorerPanel, name: str, content: bytes) -> None:
    file = {"name": name, "type": "image/jpeg", "size": len(content), "content": memoryview(content)}
    panel.controls["upload"].value = (file | {"last_modified": datetime.now(UTC)},)


def test_uploaded_photo_is_shown_and_the_slider_leads_back(panel):
    first = panel.image.value
    upload(panel, "mine.jpg", photo_file())
    assert panel.photo.name == "mine.jpg" and panel.photo.label is None
    assert panel.image.value != first and "classes" in panel.status.value
    panel.controls["photo"].value = 1
    panel.controls["photo"].value = 0
    assert panel.image.value == first


def test_upload_that_fails_is_explained_and_the_picture_stays(panel):
    first = panel.image.value
    upload(panel, "<b>notes.txt", b"text")
    assert "&lt;b&gt;notes.txt cannot be read" in panel.status.value
    assert panel.image.value == first


def test_headless_gets_the_picture_alone(explore, monkeypatch):
    assert isinstance(explore.show("End-to-end"), widgets.VBox)
    monkeypatch.setenv(HEADLESS, "1")
    assert isinstance(explore.show("End-to-end"), Image.Image)
