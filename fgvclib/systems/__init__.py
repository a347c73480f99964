"""The systems that the paper compares with in its Table 3, each in one short file behind the interface of `base`."""

from fgvclib.systems.base import System
from fgvclib.systems.finetune import FineTune

SYSTEMS: dict[str, type[System]] = {
    "finetune": FineTune,
}
