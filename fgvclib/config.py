"""Profiles: every number that a result depends on, in one place.

`paper` holds the values of the paper; where it is silent, those of the authors' earlier release, marked [ELoPE]
(Hanselmann & Ney, WACV 2020), or our own, marked (ours). `cpu` is the same experiment at a size that a laptop
finishes in minutes, `smoke` at a size that tests finish in seconds; `photos` is for real photos on a CPU, in hours.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# The checkout, or `fgvclib` in the user's home where the library is installed without one.
HOME = PROJECT if (PROJECT / "pyproject.toml").is_file() else Path.home() / "fgvclib"
DATASETS = ("synthbirds", "cub200", "aircraft", "cars", "folder")
AIRCRAFT_BANNER = 20  # pixels at the bottom of every FGVC-Aircraft photo: the photographer's copyright


@dataclass(frozen=True)
class Config:
    """One configuration. Two runs with equal `hash()` compute the same thing up to the seed."""

    profile: str = "paper"
    dataset: str = "synthbirds"

    # Data
    num_classes: int | None = None  # the first so many classes; None: all of them
    classes: tuple | None = None  # in place of the first num_classes: indices, counted from 0, in their new order
    cut_banner: bool = True  # Aircraft only: cut the copyright banner off, as the data set's authors ask
    train_per_class: int = 30  # SynthBirds only: images to draw
    test_per_class: int = 30
    photo_size: int = 512  # SynthBirds only: side of the drawn photos
    image_size: int = 448  # side of the square X that is cropped; the aspect ratio is not kept [ELoPE]
    crop_size: int = 448  # side of the crop, which is the classifier's input
    validation_fraction: float = 0.1  # of the training split; epochs and settings are chosen there (ours)

    # Classifier
    backbone: str = "resnet101.tv_in1k"
    kmax: int = 4  # global k-max pooling [ELoPE]
    embedding_dim: int = 512  # setting 1; setting 2: 1024
    setting2_backbone: str = "resnet101c.gluon_in1k"  # ResNet-C stem
    setting2_embedding_dim: int = 1024

    # Localisation
    attnet_backbone: str = "resnet50.tv_in1k"
    attnet_standardise: bool = False  # (ours) for stages that end without activation, such as EfficientNet's
    attnet_stride: int = 4  # of the stage that AttNet sees; a deeper one than 4 is (ours)
    map_size: int = 14  # cells along each side of A and M (REPRODUCTION: only 14 gives Table 1's parameter counts)
    teacher_size: int = 448  # side at which the un-cropped image enters the teacher pass
    teacher_output_stride: int = 32  # of the teacher pass
    teacher_weights: str = "live"  # or (ours) "imagenet": fixed, a photo's map is computed once
    teacher_layer: str = "last"  # or (ours) "stage": the last stage, before EfficientNet widens to its head
    teacher_mean: str = "mean"  # over channels; or (ours) "rms", the root mean square
    threshold: float = 0.3  # tau
    sharpness: float = 10.0  # of the binarisation sigmoid; the paper is silent, 10 reproduces its Table 1
    crop_margin: float = 0.0  # (ours) share by which the crop is wider and higher than the box
    fixed_box: str = "none"  # (ours) no localisation: crops fixed before training, "centre", "teacher" or "oracle"

    # Losses, equations 1-10
    lambda_emb: float = 2.0  # [ELoPE]
    lambda_att: float = 16.0
    lambda_aff: float = 16.0
    beta_att: float = 1.0
    beta_aff: float = 1.0
    theta_gradient_limit: float | None = None  # (ours) norm of a photo's classification gradient into theta

    # Training
    epochs: int = 90
    localisation_epochs: int = 0  # (ours) of AttNet and AffNet alone, before the classifier trains
    warmup_epochs: int = 0  # (ours) first epochs in which the classifier gets the whole image, not yet the crop
    batch_size: int = 14
    learning_rate: float = 0.003
    localisation_learning_rate: float = 0.003
    lr_drop: float = 0.1
    lr_drops: int = 2  # equally spaced: after 30 and 60 of 90 epochs
    momentum: float = 0.9
    weight_decay: float = 1e-3  # [ELoPE]
    precision: str = "fp32"  # of the forward pass in training: fp32 or bf16 (AffNet and the losses stay in fp32)
    workers: int = 8

    # Table 1
    table1_views: int = 2  # maps from every training photo, each of another augmentation (ours)
    table1_steps: int = 10_000
    table1_resnet_s_steps: int = 10_000
    table1_resnet50_steps: int = 3_000

    @property
    def cut_bottom(self) -> int:
        """Rows of pixels that are cut off below every photo."""
        return AIRCRAFT_BANNER if self.dataset == "aircraft" and self.cut_banner else 0

    def values(self) -> dict:
        """Key → value, as JSON gives them back: a tuple becomes a list."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def hash(self) -> str:
        """Ten hex digits that change when any value changes."""
        text = json.dumps(self.values(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


PAPER = Config()

CPU = replace(
    PAPER,
    profile="cpu",
    num_classes=8,
    train_per_class=54,
    test_per_class=45,
    photo_size=256,
    # The photo has twice the pixels of the classifier's input, so that a crop has detail to gain, as 448-pixel crops of
    # large photos do (ours). The baseline's input is the whole photo at the same size.
    image_size=224,
    crop_size=112,
    teacher_size=192,
    teacher_output_stride=16,
    backbone="efficientnet_lite0.pypi",
    setting2_backbone="efficientnet_lite0.pypi",
    attnet_backbone="efficientnet_lite0.pypi",
    attnet_standardise=True,
    theta_gradient_limit=0.1,
    epochs=10,
    warmup_epochs=3,
    batch_size=16,
    learning_rate=0.01,
    localisation_learning_rate=0.002,
    lr_drops=1,
    workers=2,
    table1_views=4,
    table1_steps=8_000,
    table1_resnet_s_steps=600,
    table1_resnet50_steps=3,
)

# Real photos on a CPU, in hours: the first 25 classes of any of the paper's data sets. Chosen on the validation part of
# CUB-200-2011's first 25 (results/reference/photos-cub200 says how).
PHOTOS = replace(
    CPU,
    profile="photos",
    num_classes=25,
    image_size=256,
    crop_size=128,
    teacher_size=448,
    teacher_output_stride=32,
    teacher_weights="imagenet",
    teacher_layer="stage",
    teacher_mean="rms",
    threshold=0.5,
    crop_margin=0.1,
    localisation_epochs=20,
    warmup_epochs=0,
    table1_views=1,  # a map costs a pass at 448 pixels
)

SMOKE = replace(
    CPU,
    profile="smoke",
    num_classes=4,
    train_per_class=10,
    test_per_class=6,
    photo_size=96,
    image_size=96,
    crop_size=48,
    teacher_size=96,
    epochs=2,
    warmup_epochs=1,
    batch_size=8,
    workers=0,
    table1_steps=30,
    table1_resnet_s_steps=4,
    table1_resnet50_steps=1,
)

PROFILES = {"smoke": SMOKE, "cpu": CPU, "photos": PHOTOS, "paper": PAPER}

CHOICES = {  # values that are words, and what each may be
    "precision": ("fp32", "bf16"),
    "teacher_weights": ("live", "imagenet"),
    "teacher_layer": ("last", "stage"),
    "teacher_mean": ("mean", "rms"),
    "fixed_box": ("none", "centre", "teacher", "oracle"),
}

MAY_BE_ZERO = ("lr_drops", "localisation_epochs", "warmup_epochs", "workers")  # of the whole numbers


def training_values(config: Config) -> dict:
    """The values that a training run depends on: all but those of Table 1, whose networks are trained apart."""
    return {key: value for key, value in config.values().items() if not key.startswith("table1_")}


def load_config(profile: str, dataset: str = "synthbirds", /, **overrides) -> Config:
    """The profile's configuration for a data set, with some values replaced.

    A folder of one's own photos is used with all its classes, whatever the profile's `num_classes`.
    Raises ValueError for an unknown profile, data set or key, and TypeError for a value of the wrong type.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; choose one of {', '.join(PROFILES)}.")
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}; choose one of {', '.join(DATASETS)}.")
    checked = {key: _checked(key, value) for key, value in overrides.items()}
    own = {"num_classes": None} if dataset == "folder" else {}
    return replace(PROFILES[profile], dataset=dataset, **(own | checked))


def _checked(key: str, value):
    """The value in its field's type: 16 becomes 16.0 where a float belongs, so that equal values hash equally."""
    types = {field.name: field.type for field in dataclasses.fields(Config)}
    del types["profile"], types["dataset"]
    if key in ("profile", "dataset"):
        raise ValueError(f"{key} is no override; give it as --{key}, or as the notebook's parameter.")
    if key not in types:
        raise ValueError(f"{key!r} is no configuration key; the keys are: {', '.join(types)}.")
    if key == "classes" and value is not None:
        return _checked_classes(value)
    kind = types[key]
    accepted = kind | int if kind in (float, float | None) else kind  # 1 is as good as 1.0
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        wanted = getattr(kind, "__name__", kind)
        raise TypeError(f"{key} = {value!r} is {type(value).__name__}, but {wanted} is needed.")
    if key in CHOICES and value not in CHOICES[key]:
        raise ValueError(f"{key} = {value!r}, but it must be one of {', '.join(CHOICES[key])}.")
    if isinstance(value, int | float) and not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{key} = {value!r}, but it must be a finite number of at least 0.")
    if value == 0 and kind in (int, int | None) and key not in MAY_BE_ZERO:
        raise ValueError(f"{key} = 0, but it must be at least 1.")
    return float(value) if isinstance(value, int) and kind in (float, float | None) else value


def _checked_classes(value) -> tuple[int, ...]:
    """A range, list or tuple of class indices as a tuple."""
    if not isinstance(value, range | list | tuple) or any(type(index) is not int for index in value):
        raise TypeError(f"classes = {value!r}, but a range or list of whole numbers is needed.")
    if not value or min(value) < 0 or len(set(value)) < len(value):
        raise ValueError(f"classes = {value!r}, but different class indices from 0 are needed.")
    return tuple(value)


def results_root() -> Path:
    """Where results go: the environment variable FGVC_RESULTS, or `results` in `HOME`."""
    return _place("FGVC_RESULTS") or HOME / "results"


def data_root() -> Path:
    """Where data sets live: the environment variable FGVC_DATA, or `data` in `HOME`."""
    return _place("FGVC_DATA") or HOME / "data"


def folder_root() -> Path:
    """Where the data set `folder` lives: the environment variable FGVC_FOLDER, or `folder` in the data root."""
    return _place("FGVC_FOLDER") or data_root() / "folder"


def _place(variable: str) -> Path | None:
    """The path in an environment variable; None where it is unset or empty."""
    text = os.environ.get(variable, "").strip()
    return Path(text).expanduser() if text else None


def results_folder(config: Config) -> Path:
    """`<profile>-<dataset>`, with the hash appended where values differ from the profile's: no mixed results."""
    name = f"{config.profile}-{config.dataset}"
    if config != load_config(config.profile, config.dataset):
        name += f"-{config.hash()}"
    return results_root() / name


def aggregate_folder(configs: Sequence[Config]) -> Path:
    """`tables-<profile>-<dataset>+<dataset>…`: where the tables over several data sets go."""
    profile = configs[0].profile
    names = [results_folder(config).name.removeprefix(f"{profile}-") for config in configs]
    return results_root() / f"tables-{profile}-{'+'.join(names)}"
