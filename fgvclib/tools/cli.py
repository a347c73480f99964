"""The command `fgvc`: run notebooks, show results, make data, recognise photos, open JupyterLab, mark exercises.

Exit status: 0 done, 1 something failed, 2 a wrong command, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from fgvclib import __version__
from fgvclib.config import DATASETS, PROFILES, load_config, results_folder
from fgvclib.tools import kernels, runner
from fgvclib.utils.literal import literal, settings
from fgvclib.utils.provenance import ask_for_fresh_runs, without_fresh


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; user errors print one line, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A file on Windows, or PYTHONIOENCODING, may have no ✓; a file's name may be in no encoding at all.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        return fgvc.main(argv, prog_name="fgvc", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as abort:
        if isinstance(abort.__cause__, EOFError):  # click takes it for Ctrl-D, but no command asks for input
            raise abort.__cause__ from None
        again = f"the same command{without_fresh()}"
        return _complain(f"Interrupted. What was done is kept; {again} goes on from there.", 130)
    except (runner.NotebookFailed, runner.NotebookBusy, runner.TrainingsFailed) as error:
        return _complain(error, 1)
    except (FloatingPointError, OSError, ImportError) as error:
        return _complain(error, 1)  # training.NonFiniteLoss is a FloatingPointError; to name it takes seconds (torch)
    except (ValueError, TypeError) as error:
        return _complain(error, 2)


def _complain(message: object, status: int) -> int:
    click.echo(message, err=True)
    return status


def _names(context, option, text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(context, option, text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {text} is not a list of whole numbers; write --seeds 0,1,2.") from None


def _overrides(context, option, items: Sequence[str]) -> dict:
    return settings(items)


profile_option = click.option("--profile", default="cpu", show_default=True, help=f"One of {', '.join(PROFILES)}.")
dataset_option = click.option(
    "--dataset", default=DATASETS[0], show_default=True, help=f"One of {', '.join(DATASETS)}."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", callback=_overrides, help="Replace a configuration value."
)
seeds_option = click.option("--seeds", default="0", show_default=True, metavar="0,1,2", callback=_seeds)
pass_on = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def fgvc():
    """Fine-grained classification with localisation, end to end."""


@fgvc.command()
@click.argument("notebook")
@click.option("-p", "--parameter", nargs=2, multiple=True, metavar="NAME VALUE",
              help="A notebook parameter, or overrides.KEY; VALUE is YAML or JSON.")  # fmt: skip
@profile_option
@dataset_option
@set_option
@seeds_option
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="MINUTES", help="Limit for each notebook.")
@click.option("--force", is_flag=True, help="Execute also what is done.")
@click.option("--fresh", is_flag=True,
              help="Train anew all runs that it needs; the old ones move to runs/replaced.")  # fmt: skip
def run(notebook, parameter, overrides, force, fresh, **settings):
    """Execute NOTEBOOK: 03, 03_affnet, a path, all, or reproduction (00 to 07)."""
    parameters = {name: literal(text) for name, text in parameter}
    inner = {name for name in parameters if name.startswith("overrides.")}
    settings["overrides"] = overrides | {name.removeprefix("overrides."): parameters.pop(name) for name in inner}
    settings |= {"parameters": parameters, "force": force or fresh}
    if fresh:
        ask_for_fresh_runs()
    if notebook not in ("all", "reproduction"):
        click.echo(runner.run_notebook(notebook, **settings))
        return
    from fgvclib.study.aggregate import print_tables

    print_tables(runner.run_all(**settings, until=runner.COMPARISON if notebook == "reproduction" else ""))


@fgvc.command()
@profile_option
@click.option("--dataset", "datasets", default=DATASETS[0], show_default=True, callback=_names,
              help="Several, separated by commas, are put together.")  # fmt: skip
@set_option
def tables(profile, datasets, overrides):
    """Print the tables of a results folder, paper | ours."""
    from fgvclib.study.aggregate import aggregate, print_tables

    if not datasets:
        raise ValueError(f"--dataset names no data set; choose from {', '.join(DATASETS)}.")
    folders = [results_folder(load_config(profile, dataset, **overrides)) for dataset in datasets]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist; `fgvc run all` makes it.")
    print_tables(folders[0] if len(folders) == 1 else aggregate(profile, datasets, overrides))


@fgvc.command()
@click.option("--rows", default="", callback=_names,
              help="Of Table 2, or 'setting 2'; default: all, setting 2 unless a committed run has it.")  # fmt: skip
@click.option("--system", "systems", default="", callback=_names,
              help="Of Table 3, such as mmal; several, separated by commas.")  # fmt: skip
@profile_option
@dataset_option
@set_option
@seeds_option
@click.option("--jobs", type=click.IntRange(1), metavar="N",
              help="Trainings at a time, a thread each; default: one for each core, if crops are small.")  # fmt: skip
@click.option("--fresh", is_flag=True,
              help="Train these anew, not what they depend on; the old ones move to runs/replaced.")  # fmt: skip
def train(rows, systems, profile, dataset, overrides, seeds, jobs, fresh):
    """Train rows of Table 2, or systems of Table 3, without a notebook; for clusters and `accelerate launch`."""
    from fgvclib.study import trainings  # imports torch
    from fgvclib.study.experiment import Experiment

    experiment = Experiment(profile, dataset, seeds, overrides)
    runs = trainings.wanted_runs(experiment, [*rows, *systems])
    for row, _ in runs:
        experiment.row_config(row)  # refuses a name that is none before anything is trained
    if fresh:
        ask_for_fresh_runs(experiment.run_folder(row, seed).name for row, seed in runs)
    try:
        trainings.train_side_by_side(experiment, runs, jobs or trainings.default_jobs(experiment.config))
    except trainings.TrainingsFailed as error:
        return _complain(error, 1)


@fgvc.command()
@click.argument("dataset", type=click.Choice(DATASETS))
@profile_option
@set_option
def data(dataset, profile, overrides):
    """Make a data set ready (data/README.md) and check all of it."""
    from fgvclib.data.splits import verify_dataset  # imports pandas

    click.echo(verify_dataset(load_config(profile, dataset, **overrides)))


@fgvc.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PHOTO...")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="checkpoint.pt in a run's folder.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FOLDER",
              help="For the drawings; default: beside each photo.")  # fmt: skip
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write the table there as well.")
@click.option("--json", type=click.Path(path_type=Path), metavar="FILE", help="Write the table there as well.")
def predict(photos, checkpoint, output, csv, json):
    """Recognise photos with a trained system, and draw its boxes."""
    import pandas as pd

    from fgvclib.apps import predict  # imports torch
    from fgvclib.utils.files import atomic_path, write_json

    kept = {path.resolve() for path in [*photos, checkpoint]}
    for path in (csv, json):
        if path and path.resolve() in kept:
            raise ValueError(f"{path} is a photo or the checkpoint; choose another name for the table.")
    recogniser = predict.Recogniser(checkpoint)
    rows, failures = predict.recognise_files(recogniser, photos, output)
    table = pd.DataFrame(rows)
    if rows:
        click.echo(table.drop(columns="drawing").to_string(index=False, formatters={"probability": "{:.1%}".format}))
    if csv:
        with atomic_path(csv) as temporary:
            table.to_csv(temporary, index=False)
    if json:
        write_json(json, rows)
    for sentence in [*recogniser.remarks(), *failures]:
        click.echo(sentence, err=True)
    return 1 if failures else 0


@fgvc.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: model.onnx beside it.")
@click.option("--page", type=click.Path(path_type=Path), metavar="FOLDER", help="Write a page for the browser instead.")
def export(run, output, page):
    """Write the model in RUN, a run's folder or its checkpoint.pt, as ONNX or a web page (needs the extra `onnx`)."""
    checkpoint = run if run.is_file() else run / "checkpoint.pt"
    if page:
        from fgvclib.apps.page import export_page  # imports torch

        click.echo(f"{export_page(checkpoint, page)}: serve it with `python -m http.server -d {page}`.")
        return
    from fgvclib.apps.export import export_run

    click.echo(export_run(checkpoint, output))


@fgvc.command()
def course():
    """Make the student notebooks from the instructor's."""
    from fgvclib.tools import course  # imports nbformat

    for line in course.build():
        click.echo(line)


@fgvc.command()
@click.argument("submissions", nargs=-1, required=True, metavar="SUBMISSION...")
def grade(submissions):
    """Run the checks of handed-in copies of the student notebooks (executes their code)."""
    from fgvclib.tools import course

    status = 0
    for submission in submissions:
        try:
            verdicts = course.grade(submission)
        except (ValueError, OSError) as error:
            status = _complain(error, 1)
            continue
        click.echo(f"{submission}: {sum(verdict['passed'] for verdict in verdicts.values())} of {len(verdicts)} right")
        for number, verdict in verdicts.items():
            click.echo(f"  {'✓' if verdict['passed'] else '✗'} {number}  {verdict['message']}")
    return status


@fgvc.command(context_settings=pass_on)
@click.pass_context
def lab(context):
    """Open JupyterLab; further arguments are passed on."""
    return kernels.lab(context.args)


@fgvc.command(context_settings=pass_on)
@profile_option
@dataset_option
@set_option
@click.pass_context
def app(context, profile, dataset, overrides):
    """Serve the explorer as a web app; further arguments go to Voilà."""
    from fgvclib.study.experiment import Experiment  # imports torch

    # Where nothing is trained yet, better one line an epoch in the terminal than a page that waits for minutes.
    Experiment(profile, dataset, overrides=overrides).trained("End-to-end")
    job = runner.plan(runner.EXPLORER, profile, dataset, [0], overrides)
    return kernels.app(job.notebook, job.parameters, context.args)
