"""The training loop: SGD on the end-to-end loss, a checkpoint after every epoch, exact resumption.

The same loop serves one process and several (`accelerate launch`, see `parallel`).
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from fgvclib.config import END_TO_END, Config
from fgvclib.data.loaders import EpochSampler, evaluation_loader, training_loader
from fgvclib.data.splits import Splits
from fgvclib.data.teacher_maps import teacher_component, teacher_maps
from fgvclib.model.losses import EmbeddingLoss, EndToEndLoss
from fgvclib.model.system import EndToEndModel, localises
from fgvclib.systems import build_network
from fgvclib.systems.base import System
from fgvclib.systems.end_to_end import EndToEnd
from fgvclib.training.checkpoints import WARM_UP, NotSaved, load_checkpoint, save_checkpoint
from fgvclib.training.evaluation import named_box, predict, summarise
from fgvclib.training.identity import run_identity
from fgvclib.utils.device import forward
from fgvclib.utils.parallel import create_accelerator, share_buffers, synchronise_batchnorm
from fgvclib.utils.progress import photo_progress, progress
from fgvclib.utils.provenance import describe_code, provenance, same_making

LOCALISATION_ALONE_RATE = 0.002  # of Adam
WATCHED = 8  # photos whose boxes are recorded after every epoch


class NonFiniteLoss(FloatingPointError):
    """A loss term became NaN or infinite; the message names it."""


def train(config: Config, splits: Splits, seed: int, checkpoint: Path, pretrained: bool = True) -> Iterator[dict]:
    """Train to the end of `config.epochs`, yielding one record of metrics per epoch, those of an earlier part first.

    The state is written to `checkpoint` after every epoch, and before the first where AttNet and AffNet have learnt
    alone; training goes on from what is there. That of the warm-up's end stays beside it (`warmup`). Equal seeds give
    equal weights on the CPU, interrupted or not. Raises NonFiniteLoss; ValueError for a foreign checkpoint, batches of
    one photo, or a class too small for balanced batches; OSError where a checkpoint cannot be saved.
    """
    check_batches(config, splits)
    accelerator = create_accelerator(config.precision)
    torch.manual_seed(seed)
    model = synchronise_batchnorm(build_network(config, len(splits.class_names), pretrained), accelerator)
    balanced = getattr(model, "batches", None)
    if balanced:
        check_classes(splits, balanced[1])
    criterion = build_loss(config, len(splits.class_names)) if config.system == END_TO_END else None
    optimiser = build_optimiser(model, config)
    schedule = build_schedule(optimiser, config)
    started = time.perf_counter()
    with accelerator.main_process_first():  # the others find the maps on disk
        maps = fixed_maps(model, criterion, splits, config) if criterion else None
    before_epochs = time.perf_counter() - started  # seconds
    loader, sampler = training_loader(splits.train, config, seed, maps, balanced)
    check_processes(len(loader), accelerator.num_processes)
    validation_loader = evaluation_loader(splits.validation, config) if len(splits.validation) else []
    identity = run_identity(config, splits, seed)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    parts |= {"criterion": criterion} if criterion else {}
    made_by = provenance(accelerator.device) | {"world_size": accelerator.num_processes, "precision": config.precision}
    begun, history, made_before, earlier = resume(checkpoint, identity, parts, made_by)
    before_epochs += made_before.get("seconds_before_epochs", 0)
    if "warmed_up_as" in made_before:
        made_by["warmed_up_as"] = made_before["warmed_up_as"]

    def save() -> None:
        if accelerator.is_main_process:
            state = {name: part.state_dict() for name, part in parts.items()}
            minutes = round((before_epochs + sum(record["seconds"] for record in history)) / 60, 2)
            taken = {"minutes": minutes, "seconds_before_epochs": round(before_epochs, 1)}
            state["provenance"] = made_by | taken | {"earlier": earlier}
            state |= identity | {"class_names": splits.class_names, "history": history}
            save_checkpoint(checkpoint, state)
            if 0 < config.warmup_epochs == len(history) and config.system == END_TO_END and config.fixed_box == "none":
                with suppress(NotSaved):  # it only spares others a training
                    save_checkpoint(checkpoint.with_name(WARM_UP), state)

    yield from history
    model.to(accelerator.device)
    if criterion:
        criterion.to(accelerator.device)  # without parameters, it is nothing to prepare
        started = time.perf_counter()
        if not begun and train_localisation(model, criterion, splits, maps, config, seed):
            before_epochs += time.perf_counter() - started
            save()
    prepared, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    validation_loader = accelerator.prepare(validation_loader)
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        sampler.epoch = epoch
        begin_epoch(model, epoch, config)
        torch.manual_seed(seed * 10_000 + epoch)  # so that a resumed epoch draws what an uninterrupted one does
        record = {"epoch": epoch + 1, "learning_rate": schedule.get_last_lr()[0]}
        record |= train_one_epoch(prepared, criterion, optimiser, loader, accelerator, config.precision)
        share_buffers(model)
        check_finite({"weights": sum(value.abs().sum() for value in model.state_dict().values())})
        schedule.step()
        gather = accelerator.gather_for_metrics
        predictions = predict(model, validation_loader, splits.validation, None, gather, config.precision)
        record |= {f"validation_{name}": value for name, value in summarise(predictions).items()}
        record["watched_boxes"] = watched_boxes(predictions)
        record["seconds"] = round(time.perf_counter() - started, 1)
        history.append(record)
        save()
        yield record


def fixed_maps(model: EndToEndModel, criterion: EndToEndLoss, splits: Splits, config: Config) -> Tensor | None:
    """The training photos' maps (N, 1, n, n) by a teacher that never changes; None where the run needs none."""
    component = teacher_component(splits.train, config)
    if component is not None:  # kept with the weights also where nothing learns from it: the teacher's box is scored
        model.teacher_component.copy_(component)
    fixed = criterion.needs_teacher and config.teacher_weights == "imagenet"
    return teacher_maps(splits.train, config, component) if fixed else None


def begin_epoch(model: EndToEndModel | System, epoch: int, config: Config) -> None:
    """Let the network switch its phases; `epoch` counts from 0."""
    if isinstance(model, System):
        model.begin_epoch(epoch, config.epochs)
    else:
        model.trust_theta = epoch >= config.warmup_epochs
        learns = config.lambda_att > 0 or config.lambda_aff > 0
        model.localise = localises(config) and (model.trust_theta or learns)  # else nobody looks at its boxes


def train_localisation(
    model: EndToEndModel, criterion: EndToEndLoss, splits: Splits, maps: Tensor | None, config: Config, seed: int
) -> bool:
    """Train AttNet and AffNet alone on the maps of a fixed teacher for `localisation_epochs` (ours) → whether they did.

    The photos are loaded at the size at which AttNet sees them; at its usual 64 pixels such an epoch costs about a
    tenth of a classifier epoch. Adam with cosine decay: nothing here has to match the classifier's schedule. Without
    maps, or where both local losses are off, there is nothing to learn from. Runs where the model is.
    """
    if config.localisation_epochs == 0 or maps is None:
        return False
    small = replace(config, image_size=model.attnet.input_size)
    model.train()
    train_on_maps(
        model.localisation_parameters(),
        lambda images, maps: criterion.local_terms(*model.localisation(images), maps),
        training_loader(splits.train, small, seed, maps),
        config.localisation_epochs,
        "AttNet and AffNet alone",
    )
    return True


def train_on_maps(
    parameters: list[nn.Parameter],
    terms_of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    loader_and_sampler: tuple[torch.utils.data.DataLoader, EpochSampler],
    epochs: int,
    title: str,
) -> None:
    """Train `parameters`, where they are, by Adam with cosine decay on the sum of `terms_of(images, maps)` (ours).

    The loader brings images (B, 3, H, W) and their "teacher_map" (B, 1, n, n). Raises NonFiniteLoss.
    """
    loader, sampler = loader_and_sampler
    optimiser = Adam(parameters, LOCALISATION_ALONE_RATE)
    schedule = CosineAnnealingLR(optimiser, epochs * len(loader))
    device = parameters[0].device
    for sampler.epoch in range(epochs):
        named = f"{title}, epoch {sampler.epoch + 1}/{epochs}"
        for batch in photo_progress(loader, named, len(sampler), lambda batch: len(batch["label"])):
            terms = terms_of(batch["image"].to(device), batch["teacher_map"].to(device))
            check_finite(terms)
            optimiser.zero_grad()
            sum(terms.values()).backward()
            optimiser.step()
            schedule.step()


def train_one_epoch(
    model: nn.Module,
    criterion: EndToEndLoss | None,
    optimiser: SGD,
    loader: torch.utils.data.DataLoader,
    accelerator: Accelerator,
    precision: str = "fp32",
) -> dict[str, float]:
    """One pass over the training photos, those of all processes → mean loss terms and accuracy over samples.

    `model` is an EndToEndModel or a System as `accelerator.prepare` returns it; its passes compute with `precision`.
    `criterion` is the former's objective; a System has its own.
    """
    model.train()
    if criterion:
        criterion.train()
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in progress(loader, "training"):
        for terms in training_steps(model, criterion, optimiser, batch, precision):
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() * len(batch["label"])
        count += len(batch["label"])
    # Every process has as many photos as the others: accelerate gives whole rounds of equal batches.
    sums = accelerator.reduce(sums, "mean")
    return {f"train_{name}": float(value) / count for name, value in sums.items()}


def training_steps(
    model: nn.Module,
    criterion: EndToEndLoss | None,
    optimiser: SGD,
    batch: dict[str, Tensor],
    precision: str = "fp32",
) -> Iterator[dict[str, Tensor]]:
    """Forward, losses, backward, SGD, as often as the system wants → each time the terms of the loss, scalars.

    A batch has "image" (B, 3, H, W), "label" (B,) and, where the teacher's maps are given, "teacher_map" (B, 1, n, n).
    Raises NonFiniteLoss.
    """
    for terms in losses(model, criterion, batch, precision):
        optimiser.zero_grad()
        terms["total"].backward()
        check_finite(terms | {"gradient": gradient_norm(model)})
        optimiser.step()
        yield terms


def losses(
    model: nn.Module, criterion: EndToEndLoss | None, batch: dict[str, Tensor], precision: str = "fp32"
) -> Iterator[dict[str, Tensor]]:
    """The terms of the loss, with "total" and "accuracy", for each optimiser step that the system takes on a batch."""
    alone = getattr(model, "module", model)  # not the wrapper of several processes, which knows one pass alone
    system = alone if isinstance(alone, System) else EndToEnd(alone, criterion, precision)
    return system.steps(batch, partial(forward, model, precision=precision))


def gradient_norm(model: EndToEndModel) -> Tensor:
    """L2 norm of the gradient of all parameters: NaN or infinite where one of them is."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def watched_boxes(predictions: pd.DataFrame) -> list[list[float]]:
    """[row, x1, y1, x2, y2] of a few photos spread over the classes, to show how the crop moves over the epochs."""
    rows = predictions.iloc[:: max(1, math.ceil(len(predictions) / WATCHED))]
    return [[index, *row] for index, row in zip(rows.index, rows[named_box("box")].to_numpy().tolist(), strict=True)]


def check_finite(terms: dict[str, Tensor]) -> None:
    """Raises NonFiniteLoss that names the first loss term, or "gradient" or "weights", that is NaN or infinite."""
    values = torch.stack([value.detach().float() for value in terms.values()]).tolist()  # waits for the GPU once
    for name, value in zip(terms, values, strict=True):
        if not math.isfinite(value):
            raise NonFiniteLoss(
                f"Training stopped because {name!r} became {value}; the last checkpoint is kept. "
                "A lower localisation_learning_rate or learning_rate usually helps."
            )


def build_loss(config: Config, num_classes: int) -> EndToEndLoss:
    """The configured objective, equation 1."""
    embedding_loss = EmbeddingLoss(num_classes, config.embedding_dim)
    return EndToEndLoss(
        embedding_loss,
        config.lambda_emb,
        config.lambda_att,
        config.lambda_aff,
        config.threshold,
        config.box_component,
        config.box_upsample,
    )


def build_optimiser(model: EndToEndModel | System, config: Config) -> SGD:
    """SGD with AttNet and AffNet in a group of their own: at a large rate lambda_att = 16 makes them diverge.

    A third group holds what weight decay spares unless `decay_w_tau_and_theta_bias` is set. A System has groups of its
    own.
    """
    if isinstance(model, System):
        groups = [group | {"lr": config.learning_rate * group.pop("rate")} for group in model.groups()]
        return SGD(groups, config.learning_rate, config.momentum, weight_decay=config.weight_decay)
    offsets = model.affnet.offsets()
    others = [p for p in model.localisation_parameters() if all(p is not offset for offset in offsets)]
    decay = config.weight_decay if config.decay_w_tau_and_theta_bias else 0.0
    groups = [
        {"params": model.classifier.parameters(), "lr": config.learning_rate},
        {"params": others, "lr": config.localisation_learning_rate},
        {"params": offsets, "lr": config.localisation_learning_rate, "weight_decay": decay},
    ]
    return SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)


def build_schedule(optimiser: SGD, config: Config) -> MultiStepLR:
    """Learning rates times `lr_drop` after each of `lr_drops` + 1 equal parts of the epochs but the last."""
    drops = [math.ceil(config.epochs * (i + 1) / (config.lr_drops + 1)) for i in range(config.lr_drops)]
    return MultiStepLR(optimiser, drops, gamma=config.lr_drop)


def check_batches(config: Config, splits: Splits) -> None:
    """Raises ValueError where a batch would hold a single photo, of which BatchNorm can take no statistics."""
    for name, count in {"batch_size": config.batch_size, "number of training photos": len(splits.train)}.items():
        if count < 2:
            raise ValueError(f"The {name} is {count}, but BatchNorm needs batches of at least 2 photos; raise it.")


def check_processes(batches: int, processes: int) -> None:
    """Raises ValueError where an epoch has no batch for each process: none would get any."""
    if batches < processes:
        raise ValueError(
            f"The training photos fill {batches} batch{'es' * (batches != 1)}, but there are {processes} processes; "
            "lower batch_size or the number of processes."
        )


def check_classes(splits: Splits, photos: int) -> None:
    """Raises ValueError that names the first class with fewer training photos than a balanced batch needs of it."""
    aside = splits.validation["label"].value_counts()
    for label, count in splits.train["label"].value_counts().sort_index().items():
        if count < photos:
            raise ValueError(
                f"The class {splits.class_names[label]} has {count} training photo{'s' * (count != 1)} beside "
                f"{aside.get(label, 0)} of the validation part, but this system needs {photos} of every class; add "
                "photos, lower validation_fraction, or leave the class out."
            )


def resume(path: Path, identity: dict, parts: dict, made_by: dict) -> tuple[bool, list[dict], dict, list[dict]]:
    """Load the checkpoint into `parts` → whether there is one, its history, its provenance, all that are not today's.

    `made_by` is today's: where code, versions, device or processor of the checkpoint are others, both are remembered.

    Raises ValueError where other code has given the parts other parameters, or grouped them otherwise.
    """
    state = load_checkpoint(path, identity)
    if state is None:
        return False, [], {}, []
    before = state.get("provenance", {})
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} was begun by other library code ({describe_code(before)}), whose parameters are not the present "
            "ones. --fresh trains anew."
        ) from error
    if before.get("library") != made_by["library"]:
        warnings.warn(
            f"{path} was begun by other library code ({describe_code(before)}); the rest is trained by the present "
            "one. --fresh trains anew.",
            stacklevel=2,
        )
    earlier = before.pop("earlier", [])
    return True, state["history"], before, earlier if same_making(before, made_by) else [*earlier, before]
