"""Training runs on disk: trained once, then loaded, so that a laptop reads what a GPU has computed.

A run's folder holds checkpoint.pt, run.log and history.csv (one line per epoch), trajectories.csv (the boxes of a few
photos over the epochs), predictions.csv (one row per test photo) and metrics.json, written last: it marks the run as
done. It also says which run this is (configuration, seed, data, processes: `identity`) and what it was made with
(commit, versions, device, command: `provenance`). A run that trained a warm-up may also have warmup.pt, the checkpoint
of its end (`warmup`). The test split is evaluated once, at the end. One process (or one group of them, started by
`accelerate launch`) trains a run; others that want it wait for it.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import chain, count
from pathlib import Path

import pandas as pd
from accelerate.utils import broadcast_object_list

from fgvclib.config import END_TO_END, Config
from fgvclib.data.index import BOX
from fgvclib.data.loaders import evaluation_loader
from fgvclib.data.splits import Splits, has_boxes
from fgvclib.data.teacher_maps import teacher_maps
from fgvclib.model.geometry import target_box
from fgvclib.model.system import EndToEndModel
from fgvclib.systems import build_network
from fgvclib.systems.base import System
from fgvclib.training.checkpoints import previous_path, read_checkpoint, save_checkpoint
from fgvclib.training.evaluation import predict, summarise
from fgvclib.training.identity import differences, run_identity
from fgvclib.training.loop import train
from fgvclib.utils.files import atomic_path, locked, read_json, write_json
from fgvclib.utils.parallel import create_accelerator, process_state
from fgvclib.utils.provenance import code_state, describe_code, is_replaced, library_hash, without_fresh

CHECKPOINT = "checkpoint.pt"
_REMARKED: set[str] = set()  # commits: a notebook that loads forty of their runs says it once for each of them
ATTNET = "attnet.pt"  # beside them where AttNet was trained before the run: its weights and boxes (study.elope)


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    folder: Path
    config: Config
    seed: int
    splits: Splits

    @property
    def checkpoint(self) -> Path:
        """The state after the last epoch."""
        return self.folder / CHECKPOINT

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Scores on the test split, as `evaluation.summarise` names them."""
        return read_json(self.folder / "metrics.json")["test"]

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch: loss terms, training and validation scores, learning rate, seconds."""
        return pd.read_csv(self.folder / "history.csv")

    @cached_property
    def trajectories(self) -> pd.DataFrame:
        """Boxes of the watched validation photos: epoch, row of the validation table, x1, y1, x2, y2."""
        return pd.read_csv(self.folder / "trajectories.csv")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Table of `evaluation.predict` over the test split."""
        scores = pd.read_csv(self.folder / "predictions.csv")
        return scores.merge(self.splits.test[["image_id", "path"]], on="image_id", how="left", validate="1:1")

    @cached_property
    def model(self) -> EndToEndModel | System:
        """The trained model in evaluation mode, on the CPU.

        Raises ValueError where its weights cannot be read, or do not fit the network of this version of the library.
        """
        model = build_network(self.config, len(self.splits.class_names), pretrained=False)
        again = f"delete {self.folder} to train this run again."
        try:
            state = read_checkpoint(self.checkpoint)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{str(error).partition(';')[0]}; {again}") from error
        try:
            model.load_state_dict(state["model"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{self.checkpoint} does not fit this version of fgvclib; {again}") from error
        return model.eval()


def list_seeds(runs: Iterable[Run]) -> str:
    """The seeds of runs as tables have them: "0 1 2"."""
    return " ".join(str(run.seed) for run in runs)


def train_or_load(
    config: Config, splits: Splits, seed: int, folder: Path, announce: Callable[[str], None] = print
) -> Run:
    """The finished run in `folder`, trained from where it stands if it is not finished.

    A finished one that other library code has made is loaded with a remark. Where `provenance.ask_for_fresh_runs` was
    called after the folder's run was made, that one is moved aside. Raises ValueError where the folder holds the run of
    another configuration, seed or number of processes, or of other data.
    """
    run = Run(Path(folder), config, seed, splits)
    identity = run_identity(config, splits, seed)
    done = run.folder / "metrics.json"
    if not _agreed(is_done(run.folder)):
        with training_lock(run.folder, announce):
            move_aside(run.folder)
            if not _agreed(done.exists()):
                _train(run, announce)
                if process_state().is_main_process:
                    announce(f"{run.folder.name}: scoring {len(splits.test)} test photos")
                _finish(run, identity)
    _check(run.folder, read_json(done), identity, announce)
    return run


def train_unscored(
    config: Config, splits: Splits, seed: int, folder: Path, announce: Callable[[str], None] = print
) -> Run:
    """As `train_or_load`, but the test split is not looked at: for what is chosen on the validation part.

    A run that was not finished before has a history afterwards, but no scores; `train_or_load` adds them without
    training again.
    """
    run = load_run(config, splits, seed, folder, announce)
    if run is None:
        run = Run(Path(folder), config, seed, splits)
        with training_lock(run.folder, announce):
            _train(run, announce)
    return run


def take_training(run: Run, trained: Run, announce: Callable[[str], None] = print) -> None:
    """Let `run` begin at the end of `trained`, whose system trains alike and answers otherwise.

    What is in its folder stays, unless `provenance.ask_for_fresh_runs` was called after it was made.
    The validation scores of its epochs stay behind, as they are those of the other answers.
    """
    with training_lock(run.folder, announce):
        move_aside(run.folder)
        if process_state().is_main_process and not run.checkpoint.exists():
            announce(f"{run.folder.name}: takes the weights of {trained.folder.name}, which trains alike")
            state = read_checkpoint(trained.checkpoint)
            history = [_without_validation(record) for record in state["history"]]
            made_by = state["provenance"] | {"trained_as": trained.folder.name}
            identity = run_identity(run.config, run.splits, run.seed)
            save_checkpoint(run.checkpoint, state | identity | {"history": history, "provenance": made_by})
    process_state().wait_for_everyone()


def _without_validation(record: dict) -> dict:
    kept = {name: value for name, value in record.items() if not name.startswith("validation_")}
    return kept | {"validation_accuracy": math.nan, "watched_boxes": []}


def is_done(folder: Path) -> bool:
    """Whether a finished run is there, and not to be made anew."""
    done = folder / "metrics.json"
    return done.exists() and not is_replaced(done)


def load_run(
    config: Config, splits: Splits, seed: int, folder: Path, announce: Callable[[str], None] = print
) -> Run | None:
    """The finished run in `folder`, None where there is none; nothing is trained or moved. Raises ValueError."""
    done = Path(folder) / "metrics.json"
    if not done.exists():
        return None
    _check(Path(folder), read_json(done), run_identity(config, splits, seed), announce)
    return Run(Path(folder), config, seed, splits)


def _check(folder: Path, stored: dict, identity: dict, announce: Callable[[str], None]) -> None:
    """Raises ValueError for a finished run that is not the one of `identity`; announces what else one should know."""
    processes = stored.get("world_size", 1)
    if identity["world_size"] == 1:  # one process may read what several have trained
        identity = identity | {"world_size": processes}
    found = differences(stored, identity)
    if found:
        raise ValueError(f"{folder} holds another run ({', '.join(found)}); move it away, or train anew with --fresh.")
    made_by = stored.get("provenance", {})
    remarks = []
    commit = made_by.get("commit")
    if made_by.get("library") != library_hash() and commit not in _REMARKED:
        _REMARKED.update({commit} - {None})
        codes = f"{describe_code(made_by)}; now {describe_code(code_state())}; said once for each commit"
        remarks.append(f"made by other library code ({codes})")
    if "data" not in stored:
        remarks.append("its data were not recorded, so they may be others")
    if processes != process_state().num_processes:
        remarks.append(f"trained by {processes} processes")
    if remarks:
        announce(f"{folder.name}: {', '.join(remarks)}. --fresh trains it anew.")


def move_aside(folder: Path) -> None:
    """Move a run that is to be trained anew to `replaced`, beside its folder, under the time when it was made."""
    newest = [path for name in ("metrics.json", CHECKPOINT, ATTNET) if (path := folder / name).exists()]
    if not process_state().is_main_process or not newest or not is_replaced(newest[0]):
        return
    made = datetime.fromtimestamp(newest[0].stat().st_mtime, UTC)
    name = f"{folder.name}-{made:%Y%m%d-%H%M%S}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))  # one copied back from there has been there
    aside = next(path for name in names if not (path := folder.parent / "replaced" / name).exists())
    aside.mkdir(parents=True)
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]  # not the lock, which is held
    for path in sorted(files, key=lambda path: path not in newest):  # from the first on, the run is not done
        path.rename(aside / path.name)


def _agreed(flag: bool) -> bool:
    """The first process's answer, so that all take the same way."""
    process_state()  # joins the group of processes, where `accelerate launch` started several
    return broadcast_object_list([flag])[0]


def training_lock(folder: Path, announce: Callable[[str], None]):
    """Let no other process, or group of processes, train in `folder` at the same time."""
    if not process_state().is_main_process:
        return nullcontext()
    told = f"{folder.name}: another process is training this run; waiting for its result."
    return locked(folder / ".lock", lambda: announce(told))


def _train(run: Run, announce: Callable[[str], None]) -> None:
    main = process_state().is_main_process
    name, announce = run.folder.name, announce if main else lambda text: None
    unscored = "" if has_boxes(run.splits.test) else "; there are no true boxes, so localisation is not scored"
    announce(f"{name}: training {run.config.epochs} epochs on {len(run.splits.train)} photos{unscored}")
    if main:
        _clear_leftovers(run.folder)
    records = []
    try:
        for record in train(run.config, run.splits, run.seed, run.checkpoint):
            records.append(record)
            if main:
                _write_history(run, records)
            announce(f"{name}: {describe_epoch(record, run.config.epochs)}")  # what it is about can be read by now
    except KeyboardInterrupt:
        announce(f"{name}: {_interrupted(run)}")
        raise
    process_state().wait_for_everyone()  # the first process may still be saving


def _interrupted(run: Run) -> str:
    """What is saved of an interrupted run, and how to go on."""
    again = f"the same call or command{without_fresh()}"
    try:
        epochs = len(read_checkpoint(run.checkpoint)["history"])
    except (FileNotFoundError, ValueError):
        return f"interrupted in the first epoch, of which nothing is saved; {again} starts again."
    done = f"epoch {epochs} of {run.config.epochs}" if epochs else "AttNet and AffNet learnt alone"
    return f"interrupted after {done}, whose state is saved in {run.folder}; {again} goes on from there."


def _clear_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _write_history(run: Run, records: list[dict]) -> None:
    watched = [pd.DataFrame(r["watched_boxes"], columns=["row", *BOX]).assign(epoch=r["epoch"]) for r in records]
    history = pd.DataFrame(records).drop(columns="watched_boxes")
    lines = [f"{run.folder.name}: {describe_epoch(record, run.config.epochs)}\n" for record in records]
    _write_csv(run.folder / "history.csv", history)
    _write_csv(run.folder / "trajectories.csv", pd.concat(watched))
    _write_text(run.folder / "run.log", "".join(lines))


def _finish(run: Run, identity: dict) -> None:
    """Evaluate the test split, and mark the run as done."""
    predictions = _predict_test(run)
    if process_state().is_main_process:
        _write_csv(run.folder / "predictions.csv", predictions.drop(columns="path"))
        made_by = {"provenance": read_checkpoint(run.checkpoint).get("provenance", {})}
        write_json(run.folder / "metrics.json", identity | made_by | {"test": summarise(predictions)})
        previous_path(run.checkpoint).unlink(missing_ok=True)
    process_state().wait_for_everyone()


def describe_epoch(record: dict, epochs: int) -> str:
    """One line for the log: `epoch 3/10  loss 2.31  train 54.2 %  validation 51.0 %  IoU 0.46  13 s`."""
    iou = f"IoU {record['validation_mean_iou']:.2f}  " if "validation_mean_iou" in record else ""
    accuracy = record["validation_accuracy"]
    validation = (
        "" if math.isnan(accuracy) else f"validation {accuracy:.1%}  "
    )  # none is set aside in the paper profile
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['train_total']:.3f}  "
        f"train {record['train_accuracy']:.1%}  {validation}{iou}{record['seconds']:.0f} s"
    )


def _predict_test(run: Run) -> pd.DataFrame:
    """Table of `predict` over the test split, computed by all processes on their devices."""
    taught = run.config.system == END_TO_END
    fixed = taught and run.config.teacher_weights == "imagenet"
    accelerator = create_accelerator(run.config.precision)
    with accelerator.main_process_first():
        maps = teacher_maps(run.splits.test, run.config, run.model.teacher_component) if fixed else None
    loader = accelerator.prepare(evaluation_loader(run.splits.test, run.config, maps))
    model = run.model.to(accelerator.device)
    box = partial(target_box, config=run.config) if taught else None
    gather = accelerator.gather_for_metrics
    predictions = predict(model, loader, run.splits.test, box, gather, run.config.precision)
    run.model.cpu()
    return predictions


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    _write_text(path, table.to_csv(index=False))


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
