"""The explorer: one photo through a trained system, step by step, with a slider at every step (Figures 1 and 2).

`Explorer.draw` makes the picture for one setting; the widgets of `Explorer.show` call it. What a slider does not
change (the maps of a photo, the classifier's answer to the whole of it) is computed once per model and photo.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from fgvclib.apps.canvas import Panel, attention_picture, bars_picture, compose, mask_picture, to_jpeg
from fgvclib.apps.predict import readable_names
from fgvclib.config import Config
from fgvclib.data.augment import to_input
from fgvclib.data.index import BOX
from fgvclib.data.loaders import evaluation_loader
from fgvclib.data.photos import open_photo
from fgvclib.data.teacher_maps import teacher_component, teacher_maps
from fgvclib.figures import BOX_STYLES, photo_batch, shorten, to_picture
from fgvclib.model.affnet import AttentionPreprocessor
from fgvclib.model.geometry import (
    IDENTITY_THETA,
    box_iou,
    box_to_theta,
    crop,
    min_max_normalise,
    target_box,
    theta_to_box,
    widen,
)
from fgvclib.model.system import EndToEndModel
from fgvclib.study.experiment import SETTING_2, Experiment
from fgvclib.study.table2 import ROWS
from fgvclib.systems import SYSTEMS
from fgvclib.systems.base import System
from fgvclib.utils.device import on_default_device
from fgvclib.utils.progress import HEADLESS

ATTNET, TEACHER = "AttNet's map A", "teacher's map M"
WHOLE, HULL, AFFNET = "whole photo", "crop at the exact box", "crop at AffNet's box"
BAR_COLOURS = {
    WHOLE: "#999999",
    HULL: BOX_STYLES["target"]["edgecolor"],
    AFFNET: BOX_STYLES["predicted"]["edgecolor"],
}
OTHER_COLOUR = BOX_STYLES["other"]["edgecolor"]
LEGEND = {
    "target": "exact box around the outlined cells",
    "predicted": "AffNet's answer to the mask",
    "true": "true box (not for training)",
}
MASK_BODY = 0.88  # of the mask's panel; the rest shows the maxima


@dataclass(frozen=True)
class Photo:
    """A photo to explore: X (1, 3, S, S), and what is known of it."""

    image: Tensor
    name: str
    label: int | None = None  # of the right class
    true_box: tuple[float, ...] | None = None  # xyxy in [0, 1]
    teacher_map: Tensor | None = None  # M (1, 1, n, n) of a teacher that never changes, where it is known


@dataclass(frozen=True)
class Seen:
    """What no slider changes: the maps (1, 1, n, n) of a photo by name, and the classifier's view of all of it."""

    maps: dict[str, Tensor]
    side: int  # at which AttNet sees the photo, in pixels
    view: Tensor  # (1, 3, c, c): the whole photo at the classifier's input size
    probabilities: Tensor  # (1, classes)


@dataclass(frozen=True)
class Answer:
    """What a threshold and a sharpness make of a map."""

    attention: Tensor  # (n, n), normalised
    mask: Tensor  # (n, n), in [0.5, 1]
    boxes: Tensor  # (2, 4): the exact hull, and AffNet's answer to the mask
    iou: float  # of the two
    views: Tensor  # (2, 3, c, c): the crops at the two boxes, with the model's margin
    probabilities: Tensor  # (2, classes)


@dataclass(frozen=True)
class Other:
    """What another trained system says of the photo, whatever the sliders are."""

    name: str
    box: tuple[float, ...]  # xyxy in [0, 1]: where it looked
    finds: bool  # whether its answer has a box; else the whole photo stands here
    probabilities: Tensor  # (1, classes)


@torch.inference_mode()
def look(model: EndToEndModel, image: Tensor, teacher_map: Tensor | None = None) -> Seen:
    """X (1, 3, S, S) → what the networks see before any threshold; the baseline has no map A.

    `teacher_map` is M where it is known; otherwise the teacher looks at X.
    """
    maps = {ATTNET: model.attnet(image)} if model.localise else {}
    view = crop(image, image.new_tensor([IDENTITY_THETA]), model.crop_size)
    teacher_map = model.teacher_map(image) if teacher_map is None else teacher_map
    probabilities = model.classifier(view)[0].softmax(dim=1)
    return Seen(maps | {TEACHER: teacher_map}, model.attnet.input_size, view, probabilities)


@torch.inference_mode()
def answer(
    model: EndToEndModel, image: Tensor, attention: Tensor, tau: float, sharpness: float, config: Config
) -> Answer:
    """What follows from a map (1, 1, n, n): its exact box at tau, AffNet's box, and the classifier's answers there.

    AffNet is given the mask of this tau and sharpness in place of those that it was trained with.
    """
    mask = AttentionPreprocessor(tau, sharpness)(attention)
    hull = target_box(attention, config, tau)
    theta = torch.cat([box_to_theta(hull), model.affnet.estimate(mask)])
    boxes = torch.cat([hull, theta_to_box(theta[1:])])
    views = crop(image.expand(2, -1, -1, -1), widen(theta, model.crop_margin), model.crop_size)
    probabilities = model.classifier(views)[0].softmax(dim=1)
    iou = float(box_iou(boxes[:1], boxes[1:]))
    return Answer(min_max_normalise(attention)[0, 0], mask[0, 0], boxes, iou, views, probabilities)


def read_upload(content: bytes, name: str) -> Image.Image:
    """An uploaded file → an upright RGB photo. Raises OSError with a sentence."""
    with TemporaryDirectory() as folder:
        path = Path(folder, Path(name).name)
        path.write_bytes(content)
        try:
            return open_photo(path)
        except OSError as error:
            raise OSError(str(error).replace(str(path), path.name)) from error


class Explorer:
    """Photos of the test split, or uploaded ones, seen through the trained models of an experiment."""

    def __init__(self, experiment: Experiment):
        self.config = experiment.config
        self.experiment = experiment
        self.rows = [row for row in [*reversed(ROWS), SETTING_2] if experiment.is_trained(row)]
        self.others = [*self.rows, *(system for system in SYSTEMS if experiment.is_trained(system))]
        self.classes = readable_names(experiment.splits.class_names)
        self._models: dict[str, EndToEndModel | System] = {}
        self._seen: tuple[str, Photo, Seen] | None = None
        self._other: tuple[str, Photo, Other] | None = None

    def model(self, row: str) -> EndToEndModel | System:
        """The trained model of a row of Table 2 or of a system of Table 3, loaded once."""
        if row not in self._models:
            self._models[row] = self.experiment.trained(row).model
        return self._models[row]

    def as_trained(self, row: str) -> tuple[float, float]:
        """tau and sharpness that the AffNet of a row works with."""
        preprocess = self.model(row).affnet.preprocess
        return preprocess.w_tau.item(), preprocess.sharpness

    def test_photo(self, number: int) -> Photo:
        """A row of the test table."""
        row = self.experiment.splits.test.iloc[number]
        image = photo_batch(self.experiment.splits.test.iloc[[number]], self.config)
        true_box = tuple(row[BOX]) if row[BOX].notna().all() else None  # not every photo has one
        teacher_map, splits = None, self.experiment.splits
        if self.config.teacher_weights == "imagenet":  # then show the M that was trained on
            component = teacher_component(splits.train, self.config)
            teacher_map = teacher_maps(splits.test.iloc[[number]], self.config, component)
        return Photo(image, f"test photo {number}", int(row["label"]), true_box, teacher_map)

    def uploaded_photo(self, content: bytes, name: str) -> Photo:
        """A file that somebody uploaded. Raises OSError where it is not a photo."""
        return Photo(to_input(read_upload(content, name), self.config).unsqueeze(0), name)

    def draw(
        self,
        row: str,
        photo: Photo,
        source: str = ATTNET,
        tau: float | None = None,
        sharpness: float | None = None,
        beside: str | None = None,
    ) -> tuple[Image.Image, str]:
        """The picture for one setting, and a sentence that says what it shows.

        `source` names the map that the box is read from (the baseline has the teacher's alone); tau and sharpness are
        the trained ones where none are given. `beside` is one of `others`, whose box and answer are drawn as well.
        """
        model = self.model(row)
        trained = self.as_trained(row)
        tau = trained[0] if tau is None else tau
        sharpness = trained[1] if sharpness is None else sharpness
        seen = self._look(row, photo)
        source = source if source in seen.maps else TEACHER
        result = answer(model, photo.image, seen.maps[source], tau, sharpness, self.config)
        other = self.other(beside, photo) if beside else None
        panels = self._panels(photo, seen, source, result, tau, sharpness, other)
        legend = {kind: text for kind, text in LEGEND.items() if kind != "true" or photo.true_box}
        if other:
            legend["other"] = f"{other.name}: where it looks"
        return compose(panels, legend), self._sentence(photo, seen, result, tau, other)

    @torch.inference_mode()
    def other(self, row: str, photo: Photo) -> Other:
        """What the trained system of a row, one of `others`, says of a photo; computed once."""
        if self._other is None or self._other[0] != row or self._other[1] is not photo:
            said = self.model(row).predict(photo.image)
            finds = self.model(row).localise
            box = said.boxes[0].clamp(0, 1).tolist() if finds else (0, 0, 1, 1)
            self._other = (row, photo, Other(row, tuple(box), finds, said.log_probabilities.exp()))
        return self._other[2]

    @torch.no_grad()
    def agreement(self, row: str, thresholds: Sequence[float]) -> pd.Series:
        """Mean IoU of AffNet's box and the exact one of the same map A, over `Splits.watched`, by threshold."""
        model = self.model(row)
        loader = evaluation_loader(self.experiment.splits.watched, self.config)
        with on_default_device(model) as device:
            maps = torch.cat([model.attnet(batch["image"].to(device)).cpu() for batch in loader])
        sharpness = self.as_trained(row)[1]
        masks = {tau: AttentionPreprocessor(tau, sharpness)(maps) for tau in thresholds}
        own = {tau: theta_to_box(model.affnet.estimate(mask)) for tau, mask in masks.items()}
        iou = {tau: float(box_iou(target_box(maps, self.config, tau), box).mean()) for tau, box in own.items()}
        return pd.Series(iou, name="mean IoU")

    def _look(self, row: str, photo: Photo) -> Seen:
        if self._seen is None or self._seen[0] != row or self._seen[1] is not photo:
            self._seen = (row, photo, look(self.model(row), photo.image, photo.teacher_map))
        return self._seen[2]

    def _panels(
        self, photo: Photo, seen: Seen, source: str, result: Answer, tau: float, k: float, other: Other | None
    ) -> list[Panel]:
        hull, own = result.boxes.tolist()
        boxes = {"target": hull, "predicted": np.clip(own, 0, 1).tolist()}
        on_photo = ({"true": photo.true_box} if photo.true_box else {}) | boxes
        on_photo |= {"other": other.box} if other else {}
        colours = "grey: 5, blue: 6, orange: 7" + (f", pink: {other.name}" if other else "")
        cells = result.attention.numpy() >= tau
        whole, *crops = (self._picture(view) for view in (seen.view[0], *result.views))
        seen_at = f"from {seen.side}×{seen.side} pixels"
        names = (self._says(seen.probabilities[0]), *(self._says(values) for values in result.probabilities))
        return [
            Panel(self._picture(photo.image[0]), "1 · Photo", self._title(photo), on_photo, smooth=True),
            self._map_panel(seen, ATTNET, "2 · AttNet's map A", seen_at, source, cells),
            self._map_panel(seen, TEACHER, "3 · Teacher's map M", "what A is trained towards", source, cells),
            Panel(
                mask_picture(result.mask, MASK_BODY), f"4 · Mask at τ = {tau:.2f}, k = {k:.0f}",
                "strips: maxima, all that AffNet reads", boxes, body=MASK_BODY,
            ),
            Panel(whole, "5 · Before: the whole photo", f"→ {names[0]}"),
            Panel(crops[0], "6 · Crop at the exact box", f"→ {names[1]}", frame="target"),
            Panel(crops[1], "7 · Crop at AffNet's box", f"→ {names[2]}", frame="predicted"),
            Panel(self._bars(photo, seen, result, other), "8 · What the classifier says", colours),
        ]  # fmt: skip

    @staticmethod
    def _map_panel(seen: Seen, name: str, title: str, note: str, source: str, cells: np.ndarray) -> Panel:
        if name not in seen.maps:
            return Panel(Image.new("RGB", (1, 1), "#EEEEEE"), title, "this model has no AttNet")
        picture = attention_picture(min_max_normalise(seen.maps[name])[0, 0])
        return Panel(picture, title, note, cells=cells if name == source else None)

    def _bars(self, photo: Photo, seen: Seen, result: Answer, other: Other | None) -> Image.Image:
        values = torch.cat([seen.probabilities, result.probabilities]).T.numpy()
        table = pd.DataFrame(values, self.classes, list(BAR_COLOURS))
        if other is None:
            return bars_picture(table, BAR_COLOURS, photo.label)
        table.insert(0, other.name, other.probabilities[0].numpy())
        return bars_picture(table, {other.name: OTHER_COLOUR} | BAR_COLOURS, photo.label, count=3)

    def _picture(self, image: Tensor) -> Image.Image:
        return Image.fromarray((255 * to_picture(image, self.config)).round().astype(np.uint8))

    def _title(self, photo: Photo) -> str:
        return photo.name if photo.label is None else self.classes[photo.label]

    def _says(self, probabilities: Tensor) -> str:
        value, label = probabilities.max(dim=0)
        return f"{shorten(self.classes[label], 24)}, {value:.0%}"

    def _sentence(self, photo: Photo, seen: Seen, result: Answer, tau: float, other: Other | None) -> str:
        kept = float((result.attention >= tau).float().mean())
        parts = [
            f"{kept:.0%} of the cells reach τ = {tau:.2f}. "
            f"AffNet's box overlaps the exact one with IoU {result.iou:.2f}."
        ]
        if photo.true_box:
            true = torch.tensor([photo.true_box]).float().expand(2, 4)
            hull, own = box_iou(true, result.boxes.clamp(0, 1)).tolist()
            parts.append(f"With the true box: exact {hull:.2f}, AffNet {own:.2f}.")
        if photo.label is not None:
            before = float(seen.probabilities[0, photo.label])
            after = result.probabilities[:, photo.label].tolist()
            parts.append(
                f"The right answer, {self.classes[photo.label]}, gets {before:.0%} from the whole photo, "
                f"{after[0]:.0%} from the crop at the exact box, {after[1]:.0%} from the crop at AffNet's."
            )
        else:
            parts.append(f"The network knows {len(self.classes)} classes and has to choose one of them for any photo.")
        if other:
            parts.append(self._sentence_of(other, photo))
        return " ".join(parts)

    def _sentence_of(self, other: Other, photo: Photo) -> str:
        says = f"{other.name} says {self._says(other.probabilities[0])}"
        if not other.finds:
            return f"{says}; it gives no box, so that the pink line is around the whole photo."
        if photo.true_box is None:
            return f"{says}, after a look at the pink box."
        iou = box_iou(torch.tensor([photo.true_box]).float(), torch.tensor([other.box]).float()).item()
        return f"{says}, after a look at the pink box, whose IoU with the true one is {iou:.2f}."

    def show(self, row: str | None = None, photo: int = 0) -> widgets.Widget | Image.Image:
        """The controls and the picture; headless, where nobody can move a slider, the picture alone."""
        panel = ExplorerPanel(self, row or self.rows[0], photo)
        return panel.picture if HEADLESS in os.environ else panel.box


class ExplorerPanel:
    """The widgets. No Output widget is among them: papermill can hang on those."""

    def __init__(self, explorer: Explorer, row: str, photo: int):
        self.explorer = explorer
        self.photo = explorer.test_photo(photo)
        self.image = widgets.Image(format="jpeg", layout=widgets.Layout(width="100%", max_width="1018px"))
        self.status = widgets.HTML()
        self._make_controls(row, photo)
        self._quiet = False
        self._reset()
        for name in ("row", "beside", "source", "tau", "sharpness"):
            self.controls[name].observe(lambda change: self._redraw(), "value")
        self.controls["photo"].observe(lambda change: self._choose(), "value")
        self.controls["upload"].observe(lambda change: self._upload(), "value")
        self.controls["reset"].on_click(lambda button: self._reset())

    def _make_controls(self, row: str, photo: int) -> None:
        last = len(self.explorer.experiment.splits.test) - 1
        wide = {"style": {"description_width": "150px"}, "layout": widgets.Layout(width="480px")}
        self.controls = {
            "photo": widgets.IntSlider(photo, 0, last, description="Test photo", **wide),
            "upload": widgets.FileUpload(accept="image/*", description="… or your own", layout={"width": "auto"}),
            "row": widgets.Dropdown(options=self.explorer.rows, value=row, description="Trained model", **wide),
            "beside": widgets.Dropdown(
                options=[("nothing", None), *((name, name) for name in self.explorer.others)],
                description="Beside it", **wide,
            ),
            "source": widgets.ToggleButtons(
                options=[ATTNET, TEACHER], description="Read the box from", style={"description_width": "150px"}
            ),
            "tau": widgets.FloatSlider(0.3, min=0.02, max=0.98, step=0.01, description="Threshold τ", **wide),
            "sharpness": widgets.FloatLogSlider(
                10, base=10, min=0, max=3, step=0.1, description="Sharpness k", readout_format=".0f", **wide
            ),
            "reset": widgets.Button(description="τ and k as trained", icon="undo", layout={"width": "auto"}),
        }  # fmt: skip

    @cached_property
    def box(self) -> widgets.VBox:
        """Everything, laid out."""
        c = self.controls
        hint = widgets.HTML("<small>keep cells above this share of the brightest · how hard the mask's edge is</small>")
        lines = [
            [c["photo"], c["upload"]], [c["row"], c["beside"]], [c["source"]],
            [c["tau"], c["reset"]], [c["sharpness"], hint],
        ]  # fmt: skip
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        return widgets.VBox([*(widgets.HBox(line, layout=wrap) for line in lines), self.status, self.image])

    def _choose(self) -> None:
        self.photo = self.explorer.test_photo(self.controls["photo"].value)
        self._redraw()

    def _upload(self) -> None:
        if not self.controls["upload"].value:
            return
        file = self.controls["upload"].value[0]
        try:
            self.photo = self.explorer.uploaded_photo(bytes(file["content"]), file["name"])
        except OSError as error:
            self.status.value = _message(str(error), colour="#B00020")
        else:
            self._redraw()

    def _reset(self) -> None:
        """Set the sliders to what the chosen model was trained to."""
        self._quiet = True
        self.controls["tau"].value, self.controls["sharpness"].value = self.explorer.as_trained(
            self.controls["row"].value
        )
        self._quiet = False
        self._redraw()

    def _redraw(self) -> None:
        if self._quiet:
            return
        began = time.perf_counter()
        choice = {name: self.controls[name].value for name in ("row", "source", "tau", "sharpness", "beside")}
        self.picture, sentence = self.explorer.draw(photo=self.photo, **choice)
        self.image.value = to_jpeg(self.picture)
        took = 1000 * (time.perf_counter() - began)
        self.status.value = _message(f"{sentence} ({took:.0f} ms)")


def _message(text: str, colour: str = "inherit") -> str:
    return f'<div style="color: {colour}; max-width: 1018px; line-height: 1.4">{escape(text)}</div>'
