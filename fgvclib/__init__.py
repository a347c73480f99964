"""Fine-grained classification with efficient end-to-end localisation (Hanselmann & Ney, 2020), as a thin library.

The names below are imported on first use, so that `fgvc --help` need not wait for torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "attnet": ["AttNet"],
    "affnet": ["AffNet", "AttentionPreprocessor"],
    "contenders": ["FFNN", "ResNet50", "ResNetS", "SoftHull"],
    "geometry": ["attention_to_box", "box_iou", "box_to_theta", "crop", "theta_to_box"],
    "classifier": ["Classifier", "GlobalKMaxPool2d"],
    "losses": ["EmbeddingLoss", "EndToEndLoss", "scale_gradient"],
    "model": ["EndToEndModel", "build_model"],
    "teacher": ["Teacher"],
    "config": ["Config", "load_config"],
    "experiment": ["Experiment"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'fgvclib' has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"fgvclib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
