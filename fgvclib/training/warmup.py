"""Trainings that differ only after their warm-up share it: it is trained once, and the others begin at its end.

As long as the classifier gets whole photos, no gradient of its loss reaches theta, so that some values have no effect.
Of Table 2, "No local supervision" warms up as "Baseline" does, and "No gradient from AffNet to AttNet" as
"No end-to-end".
"""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from fgvclib.training.checkpoints import WARM_UP, previous_path, read_checkpoint, save_checkpoint
from fgvclib.training.identity import differences, run_identity
from fgvclib.training.runs import Run, is_done, move_aside, training_lock
from fgvclib.utils.parallel import process_state
from fgvclib.utils.provenance import is_replaced, library_hash


def warm_up_values(values: dict) -> dict:
    """Values of a configuration, with those at rest that have no effect before the classifier gets crops."""
    at_rest = {"beta_aff": 0.0, "crop_margin": 0.0, "theta_gradient_limit": None}
    if values["lambda_aff"] == 0:
        at_rest["beta_att"] = 0.0  # it scales what comes from theta, and nothing does
    return values | at_rest


def take_warm_up(run: Run, others: Iterable[Path], announce: Callable[[str], None] = print) -> None:
    """Let `run` begin at the end of the warm-up of another run, where one of the folders `others` has the same.

    What is in its folder stays, as `take_training` has it. A warm-up by other library code is left alone, and several
    processes that train together share none.
    """
    paths = [path for other in others if (path := other / WARM_UP).exists() and not is_replaced(path)]
    if not paths or is_done(run.folder) or process_state().num_processes > 1:
        return
    with training_lock(run.folder, announce):
        move_aside(run.folder)
        if not run.checkpoint.exists() and not previous_path(run.checkpoint).exists():
            _take_first(run, run_identity(run.config, run.splits, run.seed), paths, announce)


def _take_first(run: Run, identity: dict, paths: Iterable[Path], announce: Callable[[str], None]) -> None:
    for path in paths:
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            warnings.warn(f"{str(error).partition(';')[0]}; the warm-up is trained again.", stacklevel=4)
            continue
        made_by = state["provenance"]
        if made_by["library"] == library_hash() and not differences(_of_warm_up(state), _of_warm_up(identity)):
            announce(f"{run.folder.name}: begins after the warm-up of {path.parent.name}, which is the same")
            made_by |= {"warmed_up_as": path.parent.name}
            save_checkpoint(run.checkpoint, state | identity | {"provenance": made_by})
            return


def _of_warm_up(identity: dict) -> dict:
    return identity | {"config": warm_up_values(identity["config"])}
