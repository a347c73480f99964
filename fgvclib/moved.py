"""Modules of release 0.1 under their old names, for scripts written before the library had sub-packages.

A module gives what it has today: names that have gone to another one since are not found. `inference`, `paper_tables`
and `plots` lie in several modules now, and `data`, `model` and `training` are packages.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HEIRS = {
    "apps": ["canvas", "explorer", "export", "live"],
    "data": ["fixed_boxes", "photos", "teacher_maps"],
    "model": ["affnet", "attnet", "backbones", "classifier", "geometry", "gradients", "losses", "teacher"],
    "study": ["aggregate", "alternatives", "bounds", "contenders", "efficiency", "experiment", "localisation", "paper"]
    + ["table1", "table2", "table3"],
    "tools": ["checks", "cli", "course", "manifest", "runner"],
    "training": ["checkpoints", "evaluation", "runs"],
    "utils": ["device", "files", "parallel", "progress"],
}
MOVED = {f"fgvclib.{name}": f"fgvclib.{package}.{name}" for package, names in HEIRS.items() for name in names}
MOVED |= {"fgvclib.datasets": "fgvclib.data.splits", "fgvclib.synthbirds": "synthbirds"}


class OldNames(MetaPathFinder, Loader):
    """Finds a module under its old name; it is imported from its new place when something in it is asked for."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}.", DeprecationWarning, stacklevel=2)

        def of_today(name: str):
            found = import_module(new)
            if name == "__all__":  # of `import *`
                return [public for public in vars(found) if not public.startswith("_")]
            return getattr(found, name)

        module.__getattr__ = of_today


def keep_old_names() -> None:
    """Let `import fgvclib.datasets` and the like go on working."""
    sys.meta_path.append(OldNames())
