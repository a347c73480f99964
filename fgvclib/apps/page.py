"""A page that runs a trained system in the browser: no Python, no installation, no network once it is served.

The system is exported in two parts, so that a slider can act between them: `locate` (photo and tau → A, mask, theta)
and `classify` (photo and theta → crop, logits). ONNX Runtime Web, from npm, is copied beside them.
"""

import shutil
import subprocess
import tarfile
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import synthbirds
from fgvclib.apps.export import half_precision_weights, write_onnx
from fgvclib.apps.predict import Recogniser, readable_names
from fgvclib.model.backbones import normalisation
from fgvclib.model.geometry import crop, min_max_normalise, widen
from fgvclib.model.system import EndToEndModel
from fgvclib.utils.files import atomic_path, write_json

RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
SAMPLES = 6  # drawn birds to begin with


class _Locate(nn.Module):
    """Photo X (1, 3, S, S) and tau (1,) → A normalised (1, 1, n, n), AffNet's mask (1, 1, n, n), theta (1, 4)."""

    def __init__(self, model: EndToEndModel):
        super().__init__()
        self.attnet, self.affnet = model.attnet, model.affnet

    def forward(self, images: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = min_max_normalise(self.attnet(images))
        mask = torch.sigmoid(self.affnet.preprocess.sharpness * torch.relu(attention - tau))
        return attention, mask, self.affnet.estimate(mask)


class _Classify(nn.Module):
    """Photo X (1, 3, S, S) and theta (1, 4) → crop (1, 3, c, c) and logits (1, K)."""

    def __init__(self, model: EndToEndModel):
        super().__init__()
        self.classifier, self.size, self.margin = model.classifier, model.crop_size, model.crop_margin

    def forward(self, images: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        cropped = crop(images, widen(theta, self.margin), self.size)
        return cropped, self.classifier(cropped)[0]


def export_page(checkpoint: Path, folder: Path) -> Path:
    """Write the page of a run's checkpoint into `folder`; serve it with `python -m http.server`.

    Raises ValueError for a checkpoint without localisation, ImportError without the extra `onnx`, and OSError where npm
    cannot bring ONNX Runtime Web.
    """
    recogniser = Recogniser(checkpoint)
    model, config = recogniser.end_to_end().cpu(), recogniser.config
    if not model.localise:
        raise ValueError("This model was built without localisation (the baseline): there is no box to show.")
    folder.mkdir(parents=True, exist_ok=True)
    _fetch_runtime(folder)  # first: the exports take longer, and this may fail
    images, theta = torch.zeros(1, 3, config.image_size, config.image_size), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    parts = {
        "locate": (_Locate(model), {"images": images, "tau": torch.tensor([0.3])}, ["attention", "mask", "theta"]),
        "classify": (_Classify(model), {"images": images, "theta": theta}, ["crop", "logits"]),
    }
    for name, (module, inputs, outputs) in parts.items():
        write_onnx(module, inputs, outputs, folder / f"{name}.onnx")
        half_precision_weights(folder / f"{name}.onnx")
    mean, std = normalisation(config.backbone)
    preprocess = model.affnet.preprocess
    about = {
        "size": config.image_size,
        "attnet_size": model.attnet.input_size,
        "mean": mean,
        "std": std,
        "tau": preprocess.w_tau.item(),
        "classes": readable_names(recogniser.class_names),
        "samples": _draw_samples(folder, config.image_size),
    }
    write_json(folder / "system.json", about)
    with as_file(files("fgvclib.apps") / "browser") as template:
        shutil.copytree(template, folder, dirs_exist_ok=True)
    return folder / "index.html"


def _draw_samples(folder: Path, size: int) -> list[str]:
    """Birds of the first species, drawn for this page: no photographer's rights are touched."""
    import numpy as np

    names = []
    for number, species in enumerate(synthbirds.species_list(SAMPLES)):
        picture, _ = synthbirds.draw_bird(species, np.random.default_rng([7, number]), size)
        names.append(f"bird{number}.jpg")
        picture.save(folder / names[-1], quality=92)
    return names


def _fetch_runtime(folder: Path) -> None:
    if all((folder / name).exists() for name in RUNTIME_FILES):
        return
    npm = shutil.which("npm")
    if npm is None:
        raise OSError(f"npm is not installed, which brings {RUNTIME} to run the model in a browser: install Node.js.")
    with TemporaryDirectory() as place:
        command = [npm, "pack", "--silent", RUNTIME]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = " ".join(done.stderr.split())[:200]
            raise OSError(f"npm could not bring {RUNTIME} ({reason}); connect to the internet and run this again.")
        with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
            for name in RUNTIME_FILES:
                with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
                    shutil.copyfileobj(archive.extractfile(f"package/dist/{name}"), file)
