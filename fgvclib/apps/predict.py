"""A trained system on your own photos: which class, how sure, and where. The command `fgvc predict`.

A run's checkpoint is all that it needs: it holds the configuration, the class names and the weights. That of ELoPE
needs the run's AttNet beside it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from fgvclib.apps.canvas import dejavu
from fgvclib.config import END_TO_END, Config
from fgvclib.data.augment import to_input
from fgvclib.data.fixed_boxes import widened
from fgvclib.data.photos import DRAWING_SUFFIX, MARK, is_drawing, open_photo, printable
from fgvclib.figures import BOX_STYLES
from fgvclib.model.geometry import WHOLE_IMAGE, centre_box, nested
from fgvclib.model.system import EndToEndModel
from fgvclib.study.elope import load_attnet, photo_box
from fgvclib.systems import build_network
from fgvclib.training.checkpoints import read_checkpoint
from fgvclib.utils.device import default_device
from fgvclib.utils.files import atomic_path
from fgvclib.utils.progress import progress

# Why a system that was trained on fixed crops cannot be given a new photo.
NO_CROP = {
    "oracle": "the true boxes of its photos, which a new photo does not have",
    "teacher": "the boxes of an ImageNet network, which the checkpoint does not hold",
}
DRAWING_SIDE = 2048  # a drawing's longer side at most, in pixels: to look at, not to print


class Recognition(NamedTuple):
    """What the system says about a photo."""

    class_name: str
    probability: float
    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the upright photo; x2 and y2 are edges, like a width


class Recogniser:
    """The system in a checkpoint, for one photo at a time.

    Raises ValueError for any other file, and where a new photo cannot be cut as those of its training were.
    """

    def __init__(self, checkpoint: Path | str):
        state = _read(Path(checkpoint))
        self.class_names = state["class_names"]
        self.epochs_done = len(state["history"])
        try:
            self.config = Config(**state["config"])
            self.model = build_network(self.config, len(self.class_names), pretrained=False).eval()
            self.model.load_state_dict(state["model"])
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{checkpoint} does not fit this version of fgvclib; train again.") from error
        self.device = default_device()
        self.model.to(self.device)
        if self.config.fixed_box in NO_CROP:
            cut_to = NO_CROP[self.config.fixed_box]
            raise ValueError(f"{checkpoint} was trained on crops at {cut_to}; choose the checkpoint of another system.")
        if self.config.fixed_box == "attnet":
            self.attnet = load_attnet(Path(checkpoint).parent, self.config).to(self.device)

    @torch.no_grad()
    def __call__(self, photo: Image.Image) -> Recognition:
        """An upright RGB photo → class, probability, and the box that was looked at, clipped to the photo.

        Of the end-to-end system that is theta's, without `crop_margin`.
        """
        part = self.part(photo)
        image = to_input(photo, self.config, tuple(part.tolist()))
        answer = self.model.predict(image.unsqueeze(0).to(self.device))
        probability, label = answer.log_probabilities[0].exp().max(dim=0)
        box = torch.tensor(WHOLE_IMAGE) if answer.boxes is None else answer.boxes[0].cpu().clamp(0, 1)
        corners = nested(box, part) * torch.tensor([photo.width, photo.height, photo.width, photo.height])
        return Recognition(self.class_names[label], probability.item(), tuple(corners.round().int().tolist()))

    def part(self, photo: Image.Image) -> torch.Tensor:
        """The box (4,) in [0, 1] that a photo is cut to before the system sees it, as in its training."""
        if self.config.fixed_box == "attnet":
            return photo_box(self.attnet, photo, self.config)
        if self.config.fixed_box == "centre":
            return widened(centre_box(1), self.config.crop_margin)[0]
        return torch.tensor(WHOLE_IMAGE)

    def end_to_end(self) -> EndToEndModel:
        """The network. Raises ValueError where it is that of another system of Table 3."""
        if self.config.system != END_TO_END:
            raise ValueError(
                f"The checkpoint is of the system {self.config.system!r}; only {END_TO_END!r} has this form."
            )
        return self.model

    def remarks(self) -> list[str]:
        """Sentences that a user of this checkpoint should know."""
        found = []
        if self.epochs_done < self.config.epochs:
            found.append(f"The training is not finished: epoch {self.epochs_done} of {self.config.epochs}.")
        if not self.model.localise and self.config.fixed_box == "none":
            found.append("This system does not localise: every box is the whole photo.")
        return found


def _read(checkpoint: Path) -> dict:
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint} does not exist or is not a file; give the checkpoint.pt in a run's folder.")
    try:
        state = read_checkpoint(checkpoint)
        return {name: state[name] for name in ("config", "class_names", "history", "model")}
    except (KeyError, ValueError) as error:  # attnet.pt, too, is a checkpoint, but not that of a system
        raise ValueError(
            f"{checkpoint} is not a checkpoint of this version of fgvclib; give the checkpoint.pt in a run's folder."
        ) from error


def recognise_files(
    recogniser: Recogniser, paths: Iterable[Path], output: Path | None = None
) -> tuple[list[dict], list[str]]:
    """Recognise and draw photos → one row of a table for each that could be read, and a sentence for each failure.

    A row has photo, class, probability, the box x1 … y2 in pixels, the photo's width and height, and where it was drawn
    (None where that failed). The drawing of `bird.jpg` is `bird.jpg.box.png`, beside it or in the folder `output`.
    Such drawings are passed over, so that `folder/*` can be given again.
    """
    rows, failures, drawn = [], [], {}
    for path in progress([path for path in paths if not is_drawing(path)], "photos"):
        try:
            photo = open_photo(path)
        except OSError as error:
            failures.append(printable(str(error)))
            continue
        found = recogniser(photo)
        drawing = (output or path.parent) / f"{path.name}{DRAWING_SUFFIX}"
        try:
            if drawn.setdefault(drawing, path.resolve()) != path.resolve():
                raise FileExistsError("another photo of the same name was drawn there")
            save_drawing(draw(photo, found), drawing)
        except OSError as error:
            failures.append(
                f"{printable(drawing)} cannot be written ({error.strerror or error}); choose another --output."
            )
            drawing = None
        corners = dict(zip(("x1", "y1", "x2", "y2"), found.box, strict=True))
        size = {"width": photo.width, "height": photo.height}
        row = {"photo": printable(path), "class": found.class_name, "probability": found.probability, **corners, **size}
        rows.append(row | {"drawing": drawing and printable(drawing)})
    return rows, failures


def draw(photo: Image.Image, found: Recognition) -> Image.Image:
    """The photo with the box and what it is said to be, its longer side at most `DRAWING_SIDE` pixels."""
    shrink = min(1, DRAWING_SIDE / max(photo.size))
    picture = photo.resize([max(1, round(side * shrink)) for side in photo.size]) if shrink < 1 else photo.copy()
    x1, y1, x2, y2 = (corner * shrink for corner in found.box)
    pen, line = ImageDraw.Draw(picture), max(1, round(max(picture.size) / 250))
    colour = BOX_STYLES["predicted"]["edgecolor"]
    for outline, width in (("white", 2 * line), (colour, line)):
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=outline, width=width)
    font = dejavu(max(10, round(max(picture.size) / 40)))
    text = f" {readable(found.class_name)}  {found.probability:.0%} "
    left, top, right, bottom = pen.textbbox((0, 0), text, font)
    x, y = max(0, min(x1, picture.width - right)), max(0, y1 - bottom - line)
    pen.rectangle((x, y, x + right, y + bottom + line), fill=colour)
    pen.text((x, y), text, "white", font)
    return picture


def readable(class_name: str) -> str:
    """A class name without the number of CUB-200-2011 and with blanks: `014.Indigo_Bunting` → `Indigo Bunting`."""
    return re.sub(r"^\d+\.", "", class_name).replace("_", " ")


def readable_names(class_names: Sequence[str]) -> list[str]:
    """The names of all classes, readable, but whole where two of them would read alike: `001.Crow` and `002.Crow`."""
    found = [readable(name) for name in class_names]
    count = Counter(found)
    return [text if count[text] == 1 else name for text, name in zip(found, class_names, strict=True)]


def save_drawing(picture: Image.Image, path: Path) -> None:
    """Write a PNG that replaces an earlier drawing, but no other file. Raises OSError."""
    if path.exists() and not is_drawing(path):
        raise FileExistsError("a file of that name is there that is not a drawing of this command")
    mark = PngInfo()
    mark.add_text(*MARK)
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=mark)
