"""AttNet: the attention map of an image, seen at 64x64 pixels (paper, section 2.1; head as in [ELoPE])."""

import torch
from torch import Tensor, nn

from fgvclib.model.backbones import Renormalise, Stem, normalisation
from fgvclib.model.geometry import resize

STRIDE = 4  # of the grid that the last convolution sees, in pixels of the paper's 64


class AttNet(nn.Module):
    """images (B, 3, H, W) → attention map A (B, 1, n, n) with n = `map_size`.

    The images are resized to 4 (n + 2) pixels (64 for n = 14), pass the first layers of a pre-trained network up to
    stride 4 and one 3x3 convolution without padding, which takes a cell off each side: 16x16 becomes 14x14.

    A stage of another `stride` than 4 (ours) sees more of the bird per cell; its features are resized to 16x16. Of
    several strides the features are concatenated. `size` (ours) is another number of pixels than 64.

    `standardise` (ours) brings every feature channel to mean 0 and variance 1 before the convolution. ResNet's stage
    ends in a ReLU; EfficientNet's in a linear bottleneck with a standard deviation near 9, on which lambda_att = 16
    diverges at the paper's learning rate.

    Images come normalised for the classifier. Where its backbone, `images_for`, and this one were trained with
    different means or standard deviations, they are normalised anew; None: they are normalised for this one.
    """

    def __init__(
        self,
        backbone: str = "resnet50.tv_in1k",
        pretrained: bool = True,
        map_size: int = 14,
        standardise: bool = False,
        stride: int | tuple[int, ...] = STRIDE,
        size: int | None = None,
        images_for: str | None = None,
    ):
        super().__init__()
        self.map_size = map_size
        self.input_size = size or STRIDE * (map_size + 2)
        same = images_for is None or normalisation(images_for) == normalisation(backbone)
        self.renormalise = nn.Identity() if same else Renormalise(images_for, backbone)
        self.stem = Stem(backbone, pretrained, (stride,) if isinstance(stride, int) else stride)
        self.norm = nn.BatchNorm2d(self.stem.num_features, affine=False) if standardise else nn.Identity()
        self.head = nn.Conv2d(self.stem.num_features, 1, kernel_size=3)

    def forward(self, images: Tensor) -> Tensor:
        small = self.renormalise(resize(images, self.input_size))  # (B, 3, 64, 64)
        stages = self.stem(small.contiguous(memory_format=torch.channels_last))
        features = torch.cat([resize(stage, self.map_size + 2) for stage in stages], dim=1)  # (B, C, 16, 16)
        return self.head(self.norm(features))  # (B, 1, 14, 14)
