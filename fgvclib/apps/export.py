"""ONNX export of the whole system: image → logits, theta, attention, for any batch size."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fgvclib.apps.predict import Recogniser
from fgvclib.model.system import EndToEndModel
from fgvclib.utils.files import atomic_path

INPUT, OUTPUTS = "images", ("logits", "theta", "attention")


class _Answers(nn.Module):
    """`EndToEndModel` with the outputs that a deployment reads, as a tuple."""

    def __init__(self, model: EndToEndModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model(images)
        return output.logits, output.theta, output.attention


def export_onnx(model: EndToEndModel, path: Path | str, image_size: int) -> Path:
    """Write `path`: "images" (B, 3, image_size, image_size), normalised → "logits", "theta", "attention"; B is free.

    Puts the model into evaluation mode. Raises ImportError where the extra `onnx` is not installed, and ValueError for
    a model without localisation.
    """
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it, and says so in many lines
    except ImportError as error:
        raise ImportError("ONNX export needs the extra `onnx`: pip install -e '.[onnx]'.") from error
    if not model.localise:
        raise ValueError("This model was built without localisation (the baseline): there is no theta to export.")
    images = torch.zeros(2, 3, image_size, image_size, device=next(model.parameters()).device)
    batch = {0: torch.export.Dim("batch")}
    with atomic_path(path) as temporary:
        torch.onnx.export(
            _Answers(model).eval(),
            (images,),
            temporary,
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=(batch,),
            external_data=False,  # one file
            verbose=False,
        )
    return Path(path)


def export_run(folder: Path, path: Path | str | None = None) -> Path:
    """Export the checkpoint of a run's folder, to `model.onnx` in it where no path is given.

    Raises ValueError where the folder holds no readable checkpoint.
    """
    trained = Recogniser(folder / "checkpoint.pt")
    return export_onnx(trained.model, path or folder / "model.onnx", trained.config.image_size)
