"""Modules of release 0.1 under their old names, for scripts written before the library had sub-packages."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "fgvclib.cli": "fgvclib.tools.cli",
    "fgvclib.datasets": "fgvclib.data.splits",
    "fgvclib.experiment": "fgvclib.study.experiment",
    "fgvclib.manifest": "fgvclib.tools.manifest",
    "fgvclib.photos": "fgvclib.data.photos",
}


class _OldName(MetaPathFinder, Loader):
    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}.", DeprecationWarning, stacklevel=2)
        module.__getattr__ = lambda name: getattr(import_module(new), name)


def keep_old_names() -> None:
    """Let `import fgvclib.datasets` and the like find the module's new place, loaded on first use."""
    sys.meta_path.append(_OldName())
