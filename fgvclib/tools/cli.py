"""The command `fgvc`: run notebooks, show results, make data, recognise photos, open JupyterLab, mark exercises.

Exit status: 0 done, 1 something failed, 2 a wrong command, 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgvclib import __version__
from fgvclib.config import DATASETS, PROFILES, Config, load_config, results_folder
from fgvclib.tools import runner
from fgvclib.utils.provenance import ask_for_fresh_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Errors of the user's are one sentence, not a traceback."""
    parser = _parser()
    arguments, extra = parser.parse_known_args(argv)
    if extra and arguments.command not in (_lab, _app):
        parser.error(f"unknown arguments: {' '.join(extra)}")
    arguments.extra = extra
    if getattr(arguments, "fresh", False):
        ask_for_fresh_runs()
    try:
        return arguments.command(arguments)
    except KeyboardInterrupt:
        return _complain("Interrupted. What was done is kept; the same command goes on from there.", 130)
    except (runner.NotebookFailed, runner.NotebookBusy, FloatingPointError, OSError, ImportError) as error:
        return _complain(error, 1)  # training.NonFiniteLoss is a FloatingPointError; to name it takes seconds (torch)
    except (ValueError, TypeError) as error:
        return _complain(error, 2)


def _complain(message: object, status: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fgvc", description="Fine-grained classification, end to end.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_runs, _add_tables, _add_training, _add_use, _add_course, _add_notebooks):
        add(commands)
    return parser


def _add_runs(commands) -> None:
    run = commands.add_parser("run", help="execute one notebook, or all of them")
    run.add_argument("notebook", help="03, 03_affnet, a path, all, or reproduction: 00 to 07")
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                     help="a notebook parameter, or overrides.KEY; VALUE is YAML or JSON")  # fmt: skip
    _add_where(run, run_options=True)
    run.set_defaults(command=_run)

    grid = commands.add_parser("grid", help="execute the ablation for data sets x rows x seeds, then gather")
    grid.add_argument("--datasets", type=_names, default=[DATASETS[0]], help=f"of {','.join(DATASETS)}")
    grid.add_argument("--rows", type=_names, default=[], help="of Table 2, separated by commas; none: all")
    grid.add_argument("--no-gather", action="store_true", help="leave the tables to a later command")
    _add_where(grid, dataset=False, run_options=True)
    grid.set_defaults(command=_grid)


def _add_tables(commands) -> None:
    tables = commands.add_parser("tables", help="print the tables, paper | ours")
    _add_where(tables)
    tables.set_defaults(command=_tables)

    aggregate = commands.add_parser("aggregate", help="put the tables of several data sets together")
    aggregate.add_argument("--datasets", type=_names, required=True, help=f"of {','.join(DATASETS)}")
    _add_where(aggregate, dataset=False)
    aggregate.set_defaults(command=_aggregate)


def _add_training(commands) -> None:
    train = commands.add_parser("train", help="train rows of Table 2 without a notebook; for `accelerate launch`")
    train.add_argument("--rows", type=_names, default=[], help="of Table 2, or 'setting 2'; none: all of Table 2")
    _add_where(train)
    train.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,2", help="default: 0")
    _add_fresh(train)
    train.set_defaults(command=_train)

    data = commands.add_parser("data", help="make a data set ready and check all of it")
    data.add_argument("dataset", choices=DATASETS, help="downloaded, drawn, or brought by you: see data/README.md")
    _add_where(data, dataset=False)
    data.set_defaults(command=_data)


def _add_use(commands) -> None:
    predict = commands.add_parser("predict", help="recognise photos with a trained system, and draw its boxes")
    predict.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    predict.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt in a run's folder")
    predict.add_argument("--output", type=Path, metavar="FOLDER", help="for the drawings; default: beside each photo")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="write the table there, too")
    predict.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    predict.set_defaults(command=_predict)

    export = commands.add_parser("export", help="write a trained model as ONNX (needs the extra `onnx`)")
    export.add_argument("run", type=Path, help="folder of a run, such as results/cpu-synthbirds/runs/End-to-end-seed0")
    export.add_argument("--output", type=Path, metavar="FILE", help="default: model.onnx in that folder")
    export.set_defaults(command=_export)


def _add_course(commands) -> None:
    course = commands.add_parser("course", help="make the student notebooks from the instructor's")
    course.set_defaults(command=_course)

    grade = commands.add_parser("grade", help="run the checks of handed-in exercise notebooks (executes their code)")
    grade.add_argument("submission", nargs="+", help="a student's copy of a notebook in notebooks/exercises/student")
    grade.set_defaults(command=_grade)


def _add_notebooks(commands) -> None:
    show = commands.add_parser("list", help="show the notebooks and their parameters")
    show.set_defaults(command=_list)

    lab = commands.add_parser("lab", help="open JupyterLab; further arguments are passed on")
    lab.set_defaults(command=_lab)

    app = commands.add_parser("app", help="serve the explorer as a web app; further arguments go to Voilà")
    _add_where(app)
    app.set_defaults(command=_app)


def _add_where(parser: argparse.ArgumentParser, dataset: bool = True, run_options: bool = False) -> None:
    """Options that choose a configuration and, for commands that execute notebooks, how."""
    parser.add_argument("--profile", default="cpu", help=f"one of {', '.join(PROFILES)}; default: cpu")
    if dataset:
        parser.add_argument("--dataset", default=DATASETS[0], help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value")
    if run_options:
        parser.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,2", help="default: 0")
        parser.add_argument("--timeout", type=_minutes, metavar="MINUTES", help="limit for each notebook")
        parser.add_argument("--force", action="store_true", help="execute also what is done")
        _add_fresh(parser)


def _add_fresh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fresh", action="store_true", help="train anew; the old runs move to runs/replaced")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes > 0:
        raise ValueError
    return minutes


def _value(text: str) -> Any:
    """A JSON or YAML literal. JSON comes first because YAML takes 1e-3 for text."""
    import yaml

    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is neither JSON nor YAML.") from error


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Config values from --set. Raises ValueError."""
    overrides = {}
    for item in arguments.set:
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item} has no value; write --set KEY=VALUE.")
        overrides[key] = _value(text)
    return overrides


def _run(arguments: argparse.Namespace) -> int:
    overrides, parameters = _overrides(arguments), {}
    for name, text in arguments.parameter:
        if name.startswith("overrides."):
            overrides[name.removeprefix("overrides.")] = _value(text)
        else:
            parameters[name] = _value(text)
    settings = {
        "profile": arguments.profile,
        "dataset": arguments.dataset,
        "seeds": arguments.seeds,
        "overrides": overrides,
        "parameters": parameters,
        "timeout": arguments.timeout,
        "force": arguments.force or arguments.fresh,
    }
    if arguments.notebook in ("all", "reproduction"):
        runner.run_all(**settings, until=runner.COMPARISON if arguments.notebook == "reproduction" else "")
    else:
        print(runner.run_notebook(arguments.notebook, **settings))
    return 0


def _grid(arguments: argparse.Namespace) -> int:
    failures = runner.run_grid(
        arguments.datasets,
        arguments.rows,
        arguments.seeds,
        arguments.profile,
        overrides=_overrides(arguments),
        timeout=arguments.timeout,
        force=arguments.force or arguments.fresh,
        gather=not arguments.no_gather,
    )
    return 1 if failures else 0


def _config(arguments: argparse.Namespace) -> Config:
    return load_config(arguments.profile, arguments.dataset, **_overrides(arguments))


def _tables(arguments: argparse.Namespace) -> int:
    folder = results_folder(_config(arguments))
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; `fgvc run all` makes it.")
    runner.print_tables(folder)
    return 0


def _aggregate(arguments: argparse.Namespace) -> int:
    from fgvclib.study.aggregate import aggregate  # imports pandas

    folder = aggregate(arguments.profile, arguments.datasets, _overrides(arguments))
    runner.print_tables(folder)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from fgvclib.study.experiment import Experiment  # imports torch
    from fgvclib.study.table2 import ROWS

    experiment = Experiment(arguments.profile, arguments.dataset, arguments.seeds, _overrides(arguments))
    for seed in arguments.seeds:
        for row in arguments.rows or ROWS:
            experiment.run(row, seed)
    return 0


def _data(arguments: argparse.Namespace) -> int:
    from fgvclib.data.splits import verify_dataset  # imports pandas

    print(verify_dataset(_config(arguments)))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    import pandas as pd

    from fgvclib.apps import predict  # imports torch
    from fgvclib.utils.files import atomic_path, write_json

    kept = {path.resolve() for path in [*arguments.photos, arguments.checkpoint]}
    for path in (arguments.csv, arguments.json):
        if path and path.resolve() in kept:
            raise ValueError(f"{path} is a photo or the checkpoint; choose another name for the table.")
    recogniser = predict.Recogniser(arguments.checkpoint)
    rows, failures = predict.recognise_files(recogniser, arguments.photos, arguments.output)
    table = pd.DataFrame(rows)
    if rows:
        print(table.drop(columns="drawing").to_string(index=False, formatters={"probability": "{:.1%}".format}))
    if arguments.csv:
        with atomic_path(arguments.csv) as temporary:
            table.to_csv(temporary, index=False)
    if arguments.json:
        write_json(arguments.json, rows)
    for sentence in [*recogniser.remarks(), *failures]:
        print(sentence, file=sys.stderr)
    return 1 if failures else 0


def _course(arguments: argparse.Namespace) -> int:
    from fgvclib.tools import course  # imports nbformat

    for line in course.build():
        print(line)
    return 0


def _grade(arguments: argparse.Namespace) -> int:
    from fgvclib.tools import course

    for submission in arguments.submission:
        verdicts = course.grade(submission)
        print(f"{submission}: {sum(verdict['passed'] for verdict in verdicts.values())} of {len(verdicts)} right")
        for number, verdict in verdicts.items():
            print(f"  {'✓' if verdict['passed'] else '✗'} {number}  {verdict['message']}", flush=True)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from fgvclib.apps.export import export_run  # imports torch

    print(export_run(arguments.run, arguments.output))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    print(runner.describe(runner.list_notebooks()))
    return 0


def _lab(arguments: argparse.Namespace) -> int:
    return runner.lab(arguments.extra)


def _app(arguments: argparse.Namespace) -> int:
    from fgvclib.study.experiment import Experiment  # imports torch

    overrides = _overrides(arguments)
    # Where nothing is trained yet, better one line an epoch in the terminal than a page that waits for minutes.
    Experiment(arguments.profile, arguments.dataset, overrides=overrides).run("End-to-end")
    return runner.app(arguments.profile, arguments.dataset, overrides, arguments.extra)
