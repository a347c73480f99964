"""Fine-grained classification with efficient end-to-end localisation (Hanselmann & Ney, 2020), as a thin library.

The names below are imported on first use, so that `fgvc --help` need not wait for torch.
"""

from importlib import import_module

from fgvclib.moved import keep_old_names

__version__ = "0.2.0"

_HOMES = {
    "model.attnet": ["AttNet"],
    "model.affnet": ["AffNet", "AttentionPreprocessor"],
    "study.contenders": ["FFNN", "ResNet50", "ResNetS", "SoftHull"],
    "model.geometry": ["attention_to_box", "box_iou", "box_to_theta", "crop", "theta_to_box", "widen"],
    "model.classifier": ["Classifier", "GlobalKMaxPool2d"],
    "model.losses": ["EmbeddingLoss", "EndToEndLoss", "localisation_loss"],
    "model.localiser": ["Localiser"],
    "model.gradients": ["clip_gradient", "scale_gradient"],
    "model.system": ["EndToEndModel", "build_model"],
    "model.teacher": ["Teacher", "build_teacher"],
    "config": ["Config", "load_config"],
    "study.experiment": ["Experiment"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)
keep_old_names()


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'fgvclib' has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"fgvclib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
