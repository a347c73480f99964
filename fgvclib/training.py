"""The training loop: SGD on the end-to-end loss, a checkpoint after every epoch, exact resumption."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from fgvclib.config import Config, training_values
from fgvclib.data import Splits, evaluation_loader, training_loader
from fgvclib.evaluation import named_box, predict, summarise
from fgvclib.files import atomic_path
from fgvclib.losses import EmbeddingLoss, EndToEndLoss
from fgvclib.model import EndToEndModel, build_model
from fgvclib.progress import progress
from fgvclib.teacher_maps import teacher_maps

CHECKPOINT_FORMAT = 2  # 2 has the class names, so that a checkpoint alone can name what it sees
LOCALISATION_ALONE_RATE = 0.002  # of Adam
WATCHED = 8  # photos whose boxes are recorded after every epoch


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the message names it."""


def train(config: Config, splits: Splits, seed: int, checkpoint: Path, pretrained: bool = True) -> Iterator[dict]:
    """Train to the end of `config.epochs`, yielding one record of metrics per epoch, those of an earlier part first.

    The state after every epoch is written to `checkpoint`, and training goes on from what is there. Equal seeds give
    equal weights on the CPU, interrupted or not. Raises NonFiniteLoss, or ValueError for a foreign checkpoint.
    """
    accelerator = Accelerator()
    torch.manual_seed(seed)
    model = build_model(config, len(splits.class_names), pretrained)
    criterion = build_loss(config, len(splits.class_names))
    optimiser = build_optimiser(model, config)
    drops = [math.ceil(config.epochs * (i + 1) / (config.lr_drops + 1)) for i in range(config.lr_drops)]
    schedule = MultiStepLR(optimiser, drops, gamma=config.lr_drop)
    fixed_teacher = criterion.needs_teacher and config.teacher_weights == "imagenet"
    maps = teacher_maps(splits.train, config) if fixed_teacher else None
    loader, sampler = training_loader(splits.train, config, seed, maps)
    validation_loader = evaluation_loader(splits.validation, config)
    history = resume(checkpoint, config, seed, model, criterion, optimiser, schedule)
    yield from history
    if not history:
        train_localisation(model, criterion, splits, maps, config, seed)
    model, criterion, optimiser, loader = accelerator.prepare(model, criterion, optimiser, loader)
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        sampler.epoch = epoch
        model.trust_theta = epoch >= config.warmup_epochs
        torch.manual_seed(seed * 10_000 + epoch)  # so that a resumed epoch draws what an uninterrupted one does
        record = {"epoch": epoch + 1, "learning_rate": schedule.get_last_lr()[0]}
        record |= train_one_epoch(model, criterion, optimiser, loader, accelerator)
        check_finite({"weights": sum(parameter.detach().abs().sum() for parameter in model.parameters())})
        schedule.step()
        predictions = predict(model, validation_loader, splits.validation)
        record |= {f"validation_{name}": value for name, value in summarise(predictions).items()}
        record["watched_boxes"] = watched_boxes(predictions)
        record["seconds"] = round(time.perf_counter() - started, 1)
        history.append(record)
        save_checkpoint(checkpoint, config, seed, splits.class_names, model, criterion, optimiser, schedule, history)
        yield record


def train_localisation(
    model: EndToEndModel, criterion: EndToEndLoss, splits: Splits, maps: Tensor | None, config: Config, seed: int
) -> None:
    """Train AttNet and AffNet alone on the maps of a fixed teacher for `localisation_epochs` (ours).

    The photos are loaded at AttNet's 64 pixels, which makes an epoch cheaper by an order of magnitude than one of the
    classifier. Adam with cosine decay: nothing here has to match the classifier's schedule. Without maps, or where both
    local losses are off, there is nothing to learn from.
    """
    if config.localisation_epochs == 0 or maps is None:
        return
    small = replace(config, image_size=model.attnet.input_size)
    loader, sampler = training_loader(splits.train, small, seed, maps)
    optimiser = Adam(model.localisation_parameters(), LOCALISATION_ALONE_RATE)
    schedule = CosineAnnealingLR(optimiser, config.localisation_epochs * len(loader))
    model.train()
    for sampler.epoch in progress(range(config.localisation_epochs), "AttNet and AffNet alone"):
        for batch in loader:
            attention, theta = model.localisation(batch["image"])
            terms = criterion.local_terms(attention, theta, batch["teacher_map"])
            check_finite(terms)
            optimiser.zero_grad()
            sum(terms.values()).backward()
            optimiser.step()
            schedule.step()


def train_one_epoch(
    model: EndToEndModel,
    criterion: EndToEndLoss,
    optimiser: SGD,
    loader: torch.utils.data.DataLoader,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One pass over the training photos → mean loss terms and accuracy over samples."""
    model.train()
    criterion.train()
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in progress(loader, "training"):
        images, labels = batch["image"], batch["label"]
        teacher_map = batch.get("teacher_map")
        if teacher_map is None and criterion.needs_teacher:
            teacher_map = model.teacher_map(images)
        output = model(images)
        terms = criterion(output, labels, teacher_map)
        check_finite(terms)
        optimiser.zero_grad()
        accelerator.backward(terms["total"])
        optimiser.step()
        terms["accuracy"] = (output.logits.argmax(dim=1) == labels).float().mean()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach() * len(labels)
        count += len(labels)
    return {f"train_{name}": float(value) / count for name, value in sums.items()}


def watched_boxes(predictions: pd.DataFrame) -> list[list[float]]:
    """[row, x1, y1, x2, y2] of a few photos spread over the classes, to show how the crop moves over the epochs."""
    rows = predictions.iloc[:: math.ceil(len(predictions) / WATCHED)]
    return [[index, *row] for index, row in zip(rows.index, rows[named_box("box")].to_numpy().tolist(), strict=True)]


def check_finite(terms: dict[str, Tensor]) -> None:
    """Raises NonFiniteLoss that names the first loss term, or "weights", that is NaN or infinite."""
    for name, value in terms.items():
        if not torch.isfinite(value):
            raise NonFiniteLoss(
                f"Training stopped because the loss term {name!r} became {value.item()}; the last checkpoint is kept. "
                "A lower localisation_learning_rate or learning_rate usually helps."
            )


def build_loss(config: Config, num_classes: int) -> EndToEndLoss:
    """The configured objective, equation 1."""
    embedding_loss = EmbeddingLoss(num_classes, config.embedding_dim)
    return EndToEndLoss(
        embedding_loss, config.lambda_emb, config.lambda_att, config.lambda_aff, threshold=config.threshold
    )


def build_optimiser(model: EndToEndModel, config: Config) -> SGD:
    """SGD with AttNet and AffNet in a group of their own: at a large rate lambda_att = 16 makes them diverge."""
    groups = [
        {"params": model.classifier.parameters(), "lr": config.learning_rate},
        {"params": model.localisation_parameters(), "lr": config.localisation_learning_rate},
    ]
    return SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)


def save_checkpoint(
    path: Path, config: Config, seed: int, class_names: list[str], model, criterion, optimiser, schedule, history
) -> None:
    """Write everything that the next epoch depends on, and the class names, atomically."""
    state = {
        "format": CHECKPOINT_FORMAT,
        "config": training_values(config),
        "seed": seed,
        "class_names": class_names,
        "model": model.state_dict(),
        "criterion": criterion.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "history": history,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def resume(path: Path, config: Config, seed: int, model, criterion, optimiser, schedule) -> list[dict]:
    """Load the checkpoint, where there is one, into the objects given → its history, empty where there is none."""
    if not path.exists():
        return []
    state = read_checkpoint(path)
    if state["config"] != training_values(config) or state["seed"] != seed:
        raise ValueError(f"{path} belongs to another configuration or seed; move it away or choose another folder.")
    model.load_state_dict(state["model"])
    criterion.load_state_dict(state["criterion"])
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return state["history"]


def read_checkpoint(path: Path) -> dict:
    """The state in a checkpoint file. Raises ValueError for a file that is damaged or of another version."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file, with advice that does not apply
        raise ValueError(f"{path} is no readable checkpoint; delete it to start this run again.") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path} was written by another version of fgvclib; delete it to start this run again.")
    return state
