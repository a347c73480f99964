"""What is done to a photo before the network sees it: the augmentation of [ELoPE], and normalisation."""

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from fgvclib.config import Config
from fgvclib.data.pixels import WHOLE, Crop, to_square
from fgvclib.model.backbones import normalisation


def to_input(photo: Image.Image, config: Config, crop: Crop = WHOLE) -> Tensor:
    """An RGB photo of any size → what the system gets of it at test time: a normalised square (3, S, S).

    `crop` is the part that `fixed_box` leaves of it, cut as `PhotoDataset` does.
    """
    size = config.image_size
    source = photo if config.fixed_box == "attnet" else to_square(photo, size)
    return colour_transform(config, augment=False)(to_square(source, size, crop))


def geometric_augmentation(config: Config) -> v2.Transform:
    """Turns and mirrors an image, and a map with it; outside the image is the mean colour, outside the map zero."""
    mean, _ = normalisation(config.backbone)
    fill = {Image.Image: [round(255 * channel) for channel in mean], tv_tensors.Image: [0.0]}
    turn = v2.RandomRotation(20, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
    return v2.Compose([turn, v2.RandomHorizontalFlip()])


def colour_transform(config: Config, augment: bool) -> v2.Transform:
    """PIL image → normalised tensor, with colours jittered where `augment` asks for it."""
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    normalise = [v2.Normalize(*normalisation(config.backbone))]
    if not augment:
        return v2.Compose([*to_tensor, *normalise])
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    return v2.Compose([jitter, *to_tensor, Lighting(0.1), *normalise])


class Lighting(v2.Transform):
    """AlexNet-style colour noise along the principal components of ImageNet's pixels; images in [0, 1] [ELoPE]."""

    eigenvalues = torch.tensor([0.2175, 0.0188, 0.0045])
    eigenvectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list) -> dict[str, Tensor]:
        weights = torch.randn(3) * self.strength * self.eigenvalues
        return {"shift": (self.eigenvectors @ weights).view(3, 1, 1)}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        return inpt + params["shift"]
