"""Time and memory (paper, section 3.2: 164 ms with localisation, 162 ms without).

Milliseconds mean nothing on another machine, and little on a busy one. So every quantity is a ratio of two sides that
were run in turn, in one process, many times: what slows one of them slows the other. Timing does not depend on the
weights, so nothing here loads or trains any; images are noise.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fgvclib.config import END_TO_END, Config
from fgvclib.model.affnet import AffNet
from fgvclib.model.geometry import crop
from fgvclib.model.system import EndToEndModel, build_model
from fgvclib.study.alternatives import MultiCrop, TwoPassCrop
from fgvclib.study.contenders import ResNet50
from fgvclib.study.table2 import ROWS
from fgvclib.systems import SYSTEMS, build_network
from fgvclib.systems.base import System
from fgvclib.systems.stn import STN
from fgvclib.training.loop import build_loss, build_optimiser, losses, training_steps
from fgvclib.utils.device import autocast, default_device, device_name

CLASSES = 200  # of CUB-200-2011, where the configuration does not limit them
LEAST_REPETITIONS = 3
NOT_YET = "not yet measured on a GPU"
GIB = 2**30

# What the paper says, and what this implementation wants to reach. Ratios, except where the unit says otherwise.
TARGETS = pd.DataFrame(
    [
        ("inference", "localisation + classifier over classifier", "ratio", 164 / 162, 1.012),
        ("affnet", "AffNet with pre-processing over ResNet-50, one map", "ratio", 0.4 / 30.4, 1 / 100),
        ("step_live", "training step over baseline, live teacher", "ratio", None, None),
        ("step_given", "training step over baseline, given teacher map", "ratio", None, 1.15),
        ("memory", "training memory, fp32", "GiB", 11.0, None),  # "fits" a card of 11 GB
        ("memory_bf16", "training memory, bf16", "GiB", None, 6.0),
        ("parameters", "parameters added by AttNet and AffNet", "count", None, None),
    ],
    columns=["key", "what", "unit", "paper_value", "goal"],
).set_index("key")


def million_multiply_adds(module: nn.Module, *inputs: Tensor) -> float:
    """Multiply-adds of one forward pass in millions, of convolutions and matrix products alone."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2e6


def compare(sides: Mapping[str, Callable[[], object]], budget_s: float, repetitions: int = 51) -> pd.DataFrame:
    """Run all sides in turn, again and again → one row per repetition: wall seconds, and "<side> cpu" seconds.

    Ends after `repetitions`, or when `budget_s` is used up, but never before three. The first round, which allocates
    and chooses algorithms, is not counted. On a GPU every side is waited for. Processor seconds (of all threads) leave
    out the time that other programs take from this one; on a GPU they are those of the host and say little.
    """
    for run in sides.values():
        _seconds(run)
    rows: list[dict[str, float]] = []
    began = time.perf_counter()
    while len(rows) < LEAST_REPETITIONS or (len(rows) < repetitions and time.perf_counter() - began < budget_s):
        order = list(sides) if len(rows) % 2 else list(reversed(sides))  # neither side always comes after the other
        row = {}
        for name in order:
            row[name], row[f"{name} cpu"] = _seconds(sides[name])
        rows.append(row)
    return pd.DataFrame(rows)[[column for name in sides for column in (name, f"{name} cpu")]]


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    _wait()
    wall, processor = time.perf_counter(), time.process_time()
    run()
    _wait()
    return time.perf_counter() - wall, time.process_time() - processor


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(times: pd.DataFrame, side: str, over: str) -> dict[str, float]:
    """Table of `compare` → median over the repetitions of side / over, its quartiles, and the same in CPU seconds."""
    pairs = times[side] / times[over]
    return {
        "value": pairs.median(),
        "low": pairs.quantile(0.25),
        "high": pairs.quantile(0.75),
        "cpu_time_value": (times[f"{side} cpu"] / times[f"{over} cpu"]).median(),
        "repetitions": len(times),
    }


def ratios(times: pd.DataFrame, over: str) -> pd.DataFrame:
    """`ratio` of every side, one row each, with its median milliseconds."""
    sides = [name for name in times if not name.endswith(" cpu")]
    return pd.DataFrame({name: {"ms": 1e3 * times[name].median()} | ratio(times, name, over) for name in sides}).T


def sized_model(config: Config, num_classes: int | None = None) -> EndToEndModel:
    """The configured system without trained weights, on `default_device()`."""
    return build_model(config, num_classes or config.num_classes or CLASSES, pretrained=False).to(default_device())


def noise(config: Config, size: int | None = None, batch: int | None = None) -> Tensor:
    """Images of a batch, (batch_size, 3, image_size, image_size), as a loader would deliver them."""
    side = size or config.image_size
    return torch.randn(batch or config.batch_size, 3, side, side, device=default_device())


def inference(model: nn.Module, images: Tensor, precision: str = "fp32") -> Callable[[], object]:
    """A side for `compare`: one pass in evaluation mode."""
    model.eval()

    @torch.inference_mode()
    def run() -> object:
        with autocast(precision, images.device):
            return model(images)

    return run


def inference_sides(config: Config) -> dict[str, Callable[[], object]]:
    """The classifier alone on images of its input size, our system, and what users would pick instead."""
    model, images = sized_model(config), noise(config)
    classifier = model.classifier
    others = {
        "spatial transformer": STN(classifier.output.out_features, config.backbone, config.crop_size, pretrained=False),
        "two-pass crop": TwoPassCrop(classifier, config.crop_size, config.threshold),
        "5 crops": MultiCrop(classifier, config.crop_size),
        "10 crops": MultiCrop(classifier, config.crop_size, mirrored=True),
    }
    sides = {"classifier": inference(classifier, noise(config, config.crop_size)), "ours": inference(model, images)}
    for name, other in others.items():
        sides[name] = inference(other.to(images.device, memory_format=torch.channels_last), images)
    return sides


def timed_systems(config: Config) -> list[str]:
    """The paper's system, and all of Table 3 that take crops of this size; variants for a data set cost the same."""
    fitting = [name for name, system in SYSTEMS.items() if system.smallest_crop <= config.crop_size]
    return [END_TO_END, *(name for name in fitting if not name.endswith("-vehicles"))]


def system_costs(config: Config, budget_s: float) -> pd.DataFrame:
    """What one answer (`predict`) of each of `timed_systems` costs over "finetune", the plain classifier.

    Columns: those of `ratios`, and the ratio of `multiply_adds`. One row a system, the cheapest first.
    """
    configs = {name: replace(config, system=name) for name in timed_systems(config)}
    classes = config.num_classes or CLASSES
    networks = {name: Answering(build_network(own, classes, pretrained=False)) for name, own in configs.items()}
    images = noise(config)
    sides = {name: inference(network.to(images.device), images) for name, network in networks.items()}
    operations = pd.Series({name: million_multiply_adds(network, images[:1]) for name, network in networks.items()})
    table = ratios(compare(sides, budget_s), over="finetune")
    return table.assign(multiply_adds=operations / operations["finetune"]).sort_values("value")


class Answering(nn.Module):
    """A network whose forward pass is its answer: X (B, 3, H, W) → log-probabilities (B, classes).

    `found_before`: AttNet's pass comes before it, as it finds the crop.
    """

    def __init__(self, network: EndToEndModel | System, found_before: bool = False):
        super().__init__()
        self.network, self.found_before = network, found_before

    def forward(self, images: Tensor) -> Tensor:
        if self.found_before:
            self.network.attnet(images)
        return self.network.predict(images).log_probabilities


def localisation_sides(config: Config) -> dict[str, Callable[[], object]]:
    """The classifier, and the parts of what localisation adds at test time."""
    model, images = sized_model(config), noise(config)
    model.eval()
    attention, theta = model.localisation(images)
    attention, theta = attention.detach(), theta.detach()
    return {
        "classifier": inference(model.classifier, noise(config, config.crop_size)),
        "AttNet": inference(model.attnet, images),
        "AffNet": inference(model.affnet, attention),
        "crop": inference(_Crop(theta, config.crop_size), images),
    }


class _Crop(nn.Module):
    def __init__(self, theta: Tensor, size: int):
        super().__init__()
        self.theta, self.size = theta, size

    def forward(self, images: Tensor) -> Tensor:
        return crop(images, self.theta, self.size)


def operations(config: Config) -> pd.Series:
    """Arithmetic operations of the parts for one photo at test time; a multiplication and an addition count as two.

    `FlopCounterMode` counts convolutions and matrix products, on meta tensors: nothing is computed. The crop, which has
    neither, is left out.
    """
    with torch.device("meta"):
        model = build_model(config, config.num_classes or CLASSES, pretrained=False).eval()
        whole, cropped = (torch.empty(1, 3, side, side) for side in (config.image_size, config.crop_size))
        grid = torch.empty(1, 1, config.map_size, config.map_size)
    counts = {}
    for name, part, given in (
        ("classifier", model.classifier, cropped),
        ("AttNet", model.attnet, whole),
        ("AffNet", model.affnet, grid),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part(given)
        counts[name] = counter.get_total_flops()
    return pd.Series(counts, name="operations")


def affnet_sides(config: Config) -> dict[str, Callable[[], object]]:
    """AffNet and Table 1's ResNet-50, both with pre-processing, on one map (1, 1, n, n)."""
    one = torch.rand(1, 1, config.map_size, config.map_size, device=default_device())
    networks = {"AffNet": AffNet(config.map_size), "ResNet-50": ResNet50(config.map_size)}
    return {name: inference(network.to(one.device), one) for name, network in networks.items()}


# Which mean a map is, and what AttNet and AffNet learnt before, takes no time in a step; a fixed teacher's may not fit.
LIVE_TEACHER = {"teacher_weights": "live", "teacher_mean": "mean", "localisation_epochs": 0}


class TrainingStep:
    """One step of the training loop on a batch of noise, again and again; a side for `compare`.

    `teacher`: "live" runs the teacher pass in the step, as in the paper; "given" gets the map with the batch. A
    configuration without local losses, the baseline, needs neither. It computes with `config.precision`.
    """

    def __init__(self, config: Config, teacher: str = "live"):
        config = replace(config, **LIVE_TEACHER)  # a fixed teacher's map is the given one
        self.model = sized_model(config).train()
        num_classes = self.model.classifier.output.out_features
        self.criterion = build_loss(config, num_classes).to(default_device())
        self.optimiser = build_optimiser(self.model, config)
        for group in self.optimiser.param_groups:
            group["lr"] = 0.0  # at any other rate many steps on noise may diverge
        labels = torch.arange(config.batch_size, device=default_device()) % num_classes
        self.batch = {"image": noise(config), "label": labels}
        if teacher == "given":
            maps = torch.rand(config.batch_size, 1, config.map_size, config.map_size, device=default_device())
            self.batch["teacher_map"] = maps
        self.precision = config.precision

    def __call__(self) -> None:
        list(training_steps(self.model, self.criterion, self.optimiser, self.batch, self.precision))

    def loss(self) -> Tensor:
        """The total loss of the batch, with its graph."""
        return next(losses(self.model, self.criterion, self.batch, self.precision))["total"]


def step_sides(config: Config) -> dict[str, Callable[[], object]]:
    """Training steps: the baseline's, and the end-to-end one with both kinds of teacher map."""
    return {
        "baseline": TrainingStep(replace(config, **ROWS["Baseline"])),
        "live teacher": TrainingStep(config, "live"),
        "given teacher map": TrainingStep(config, "given"),
    }


def training_memory(config: Config, precision: str) -> dict[str, float]:
    """GiB that a training step with a given teacher map needs in "fp32" or "bf16": {"value", "counted"}.

    On a GPU the most that was allocated at once during two steps. A CPU has no such meter; there, "counted" 1: weights,
    gradients, momentum, and all tensors that the forward pass keeps for the backward pass, without the short-lived
    buffers of single operations. A lower bound.
    """
    step = TrainingStep(replace(config, precision=precision), "given")
    if default_device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - _bytes(step.model)
        step()
        step()
        return {"value": (torch.cuda.max_memory_allocated() - before) / GIB, "counted": 0}
    return {"value": (3 * _bytes(step.model) + kept_for_backward(step.loss, step.model)) / GIB, "counted": 1}


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def kept_for_backward(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once; the model's own tensors not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own node keeps would never be freed

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()  # holds the graph, so that no address is used twice
    total = sum(kept.values())
    del loss
    return total


def hardware_sides(config: Config, compiled: bool = True) -> dict[str, Callable[[], object]]:
    """Inference of the whole system with the memory layout, the precision and the compiler that the hardware offers."""
    model, images = sized_model(config), noise(config)
    rows_first = sized_model(config).to(memory_format=torch.contiguous_format)
    sides = {
        "channels_last, fp32 (as built)": inference(model, images),
        "NCHW weights, fp32": inference(rows_first, images),
        "channels_last, bf16": inference(model, images, "bf16"),
    }
    if compiled:
        sides["channels_last, fp32, torch.compile"] = inference(torch.compile(model), images)
    return sides


def can_compile() -> bool:
    """Whether torch.compile works here: it needs a C++ compiler, on a GPU also Triton."""
    # Where CUDA's compiler is and no GPU, torch would print its folder.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(lambda x: torch.relu(x) + 1)(torch.zeros(8, device=default_device()))
    except Exception:  # torch raises its own kinds for a missing compiler, and those of the compiler
        return False
    return True


def efficiency_table(measured: Mapping[str, Mapping[str, float]], config: Config) -> pd.DataFrame:
    """Measured values by key of `TARGETS` → `efficiency.csv`, with the paper's figures and the goals beside them.

    On a machine without GPU every quantity also has a row that says that it is not yet measured on one.
    """
    rows = [_row(key, values, device_name(), "") for key, values in measured.items()]
    if not torch.cuda.is_available():
        rows += [_row(key, {"value": np.nan}, "GPU", NOT_YET) for key in measured if key != "parameters"]
    table = pd.DataFrame(rows).drop(columns="counted", errors="ignore")
    size = f"{config.backbone}, {config.image_size} → {config.crop_size} px, batch {config.batch_size}"
    return table.assign(size=size)


def _row(key: str, values: Mapping[str, float], where: str, note: str) -> dict:
    target = TARGETS.loc[key]
    reached = "yes" if values["value"] <= target["goal"] else "no"
    if np.isnan(values["value"]) or np.isnan(target["goal"]):
        reached = ""
    if values.get("counted"):
        note = "counted without short-lived buffers: a lower bound"
    columns = {"what": target["what"], "unit": target["unit"], "paper_value": target["paper_value"]}
    return columns | dict(values) | {"goal": target["goal"], "reached": reached, "device": where, "note": note}
