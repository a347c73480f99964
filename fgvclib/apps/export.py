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
    if not model.localise:
        raise ValueError("This model was built without localisation (the baseline): there is no theta to export.")
    images = torch.zeros(2, 3, image_size, image_size, device=next(model.parameters()).device)
    batch = {0: torch.export.Dim("batch")}
    return write_onnx(_Answers(model), {INPUT: images}, list(OUTPUTS), Path(path), dynamic_shapes=(batch,))


def write_onnx(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path, **options) -> Path:
    """Write one file; `inputs` are examples by name. Puts the module into evaluation mode.

    Raises ImportError where the extra `onnx` is not installed.
    """
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it, and says so in many lines
    except ImportError as error:
        raise ImportError("ONNX export needs the extra `onnx`: pip install -e '.[onnx]'.") from error
    names = {"input_names": list(inputs), "output_names": outputs}
    with atomic_path(path) as temporary:
        arguments = tuple(inputs.values())
        torch.onnx.export(
            module.eval(), arguments, temporary, dynamo=True, external_data=False, verbose=False, **names, **options
        )
    return path


def half_precision_weights(path: Path, smallest: int = 1024) -> None:
    """Store the weights of an ONNX file as fp16 and cast them back where they are used: half the file, fp32 arithmetic.

    Tensors of fewer than `smallest` values stay as they are.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < smallest:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype("float16"), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)


def export_run(checkpoint: Path, path: Path | str | None = None) -> Path:
    """Export a run's checkpoint to `path`, by default `model.onnx` beside it; to `model.onnx` in a folder.

    Raises ValueError if the checkpoint cannot be read.
    """
    trained = Recogniser(checkpoint)
    path = Path(path or checkpoint.parent)
    return export_onnx(trained.end_to_end(), path / "model.onnx" if path.is_dir() else path, trained.config.image_size)
