"""The systems that the paper compares with in its Table 3, each in one short file behind the interface of `base`."""

import torch

from fgvclib.config import END_TO_END, Config
from fgvclib.model.system import EndToEndModel, build_model
from fgvclib.systems.apinet import APINet
from fgvclib.systems.base import System
from fgvclib.systems.cal import CAL, WSDAN, CALOneLook
from fgvclib.systems.dcl import DCL, DCLVehicles
from fgvclib.systems.finetune import FineTune
from fgvclib.systems.ise import ISE
from fgvclib.systems.isqrt import ISqrtCov
from fgvclib.systems.mamc import MAMC
from fgvclib.systems.mmal import MMAL, MMALVehicles
from fgvclib.systems.nts import NTS
from fgvclib.systems.pmg import PMG
from fgvclib.systems.racnn import RACNN
from fgvclib.systems.stn import STN

SYSTEMS: dict[str, type[System]] = {
    "finetune": FineTune,
    "dcl": DCL,
    "dcl-vehicles": DCLVehicles,
    "apinet": APINet,
    "pmg": PMG,
    "mmal": MMAL,
    "mmal-vehicles": MMALVehicles,
    "stn": STN,
    "isqrt": ISqrtCov,
    "mamc": MAMC,
    "cal": CAL,
    "cal-one-look": CALOneLook,
    "wsdan": WSDAN,
    "nts": NTS,
    "racnn": RACNN,
    "ise": ISE,
}
TRAINED_AS = {"cal-one-look": "cal"}  # which trains alike and answers otherwise


def build_network(config: Config, num_classes: int, pretrained: bool = True) -> EndToEndModel | System:
    """The network that `config.system` names. Raises ValueError for a name that is none, or sizes that do not fit."""
    if config.system == END_TO_END:
        return build_model(config, num_classes, pretrained)
    if config.system not in SYSTEMS:
        raise ValueError(f"system is {config.system!r}; choose one of {', '.join([END_TO_END, *SYSTEMS])}.")
    network = SYSTEMS[config.system](num_classes, config.backbone, config.crop_size, pretrained)
    return network.to(memory_format=torch.channels_last)
