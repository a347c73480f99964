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
from fgvclib.utils.provenance import is_replaced, provenance, same_making


def warm_up_values(values: dict) -> dict:
    """Values of a configuration, with those at rest that have no effect before the classifier gets crops."""
    at_rest = {"crop_margin": 0.0, "theta_gradient_limit": None}
    if values["lambda_aff"] == 0:
        at_rest["beta_att"] = 0.0  # it scales what comes from theta, and nothing does
    # Else AffNet, run for L_att alone, decays where beta_aff lets it learn.
    if values["lambda_aff"] > 0 or values["lambda_att"] == 0:
        at_rest["beta_aff"] = 0.0
    return values | at_rest


def take_warm_up(run: Run, others: Iterable[Path], announce: Callable[[str], None] = print) -> None:
    """Let `run` begin at the end of the warm-up of another run, where one of the folders `others` has the same.

    What is in its folder stays, as `take_training` has it. A warm-up by other library code, versions or hardware is
    left alone, and so is one from before --fresh was asked for `run`. Processes that train together share none.
    """
    paths = [path for other in others if (path := other / WARM_UP).exists()]
    if not paths or is_done(run.folder) or process_state().num_processes > 1:
        return
    with training_lock(run.folder, announce):
        move_aside(run.folder)
        if not run.checkpoint.exists() and not previous_path(run.checkpoint).exists():
            _take_first(run, run_identity(run.config, run.splits, run.seed), paths, announce)


def _take_first(run: Run, identity: dict, paths: Iterable[Path], announce: Callable[[str], None]) -> None:
    for path in paths:
        try:
            old = is_replaced(path) or is_replaced(path, run.folder.name)
            state = None if old else read_checkpoint(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"{str(error).partition(';')[0]}; the warm-up is trained again.", stacklevel=4)
            continue
        if state and _is_the_same(state, identity):
            announce(f"{run.folder.name}: begins after the warm-up of {path.parent.name}, which is the same")
            made_by = state["provenance"] | {"warmed_up_as": path.parent.name}
            save_checkpoint(run.checkpoint, state | identity | {"provenance": made_by})
            return


def _is_the_same(state: dict, identity: dict) -> bool:
    made_by = state["provenance"]
    rate = "localisation_learning_rate"  # it has no effect on a Baseline, but the optimiser holds it
    return (
        not made_by["earlier"]
        and same_making(made_by, provenance())
        and state["config"][rate] == identity["config"][rate]
        and not differences(_of_warm_up(state), _of_warm_up(identity))
    )


def _of_warm_up(identity: dict) -> dict:
    return identity | {"config": warm_up_values(identity["config"])}
