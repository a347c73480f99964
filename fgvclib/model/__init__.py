"""The paper: Figures 1 and 2, equations 1 to 10.

Harald Hanselmann and Hermann Ney, "Fine-Grained Visual Classification with Efficient End-to-end Localization", 2020,
arXiv:2005.05123. [ELoPE] is their earlier system: "ELoPE: Fine-Grained Visual Classification with Efficient
Localization, Pooling and Embedding", WACV 2020.
"""

from fgvclib.model.affnet import AffNet, AttentionPreprocessor
from fgvclib.model.attnet import AttNet
from fgvclib.model.classifier import Classifier, GlobalKMaxPool2d
from fgvclib.model.geometry import attention_to_box, box_iou, box_to_theta, crop, theta_to_box, widen
from fgvclib.model.gradients import clip_gradient, scale_gradient
from fgvclib.model.localiser import Localiser
from fgvclib.model.losses import EmbeddingLoss, EndToEndLoss, localisation_loss
from fgvclib.model.system import EndToEndModel, build_model
from fgvclib.model.teacher import Teacher, build_teacher

__all__ = [
    "AffNet",
    "AttNet",
    "AttentionPreprocessor",
    "Classifier",
    "EmbeddingLoss",
    "EndToEndLoss",
    "EndToEndModel",
    "GlobalKMaxPool2d",
    "Localiser",
    "Teacher",
    "attention_to_box",
    "box_iou",
    "box_to_theta",
    "build_model",
    "build_teacher",
    "clip_gradient",
    "crop",
    "localisation_loss",
    "scale_gradient",
    "theta_to_box",
    "widen",
]
