"""The paper's own system behind the interface of its rivals."""

from collections.abc import Callable, Iterator

from torch import Tensor

from fgvclib.model.losses import EndToEndLoss
from fgvclib.model.system import EndToEndModel, ModelOutput
from fgvclib.systems.base import accuracy
from fgvclib.utils.device import autocast


class EndToEnd:
    """`EndToEndModel` with its objective, as the training loop sees a system; `precision` is that of the passes."""

    def __init__(self, model: EndToEndModel, criterion: EndToEndLoss, precision: str = "fp32"):
        self.model, self.criterion, self.precision = model, criterion, precision

    def steps(self, batch: dict[str, Tensor], look: Callable[..., ModelOutput]) -> Iterator[dict[str, Tensor]]:
        """One step: forward, the teacher's pass beside it where the batch brings no "teacher_map", equation 1."""
        target = batch.get("teacher_map")
        if target is None and self.criterion.needs_teacher:
            with autocast(self.precision, batch["image"].device):
                target = self.model.teacher_map(batch["image"]).float()
        output = look(batch["image"])
        terms = self.criterion(output, batch["label"], target)
        yield terms | {"accuracy": accuracy(output.logits, batch["label"])}
