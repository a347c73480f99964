"""A trained system without training: the committed run is shown until one is trained here."""

import pytest

from fgvclib.study import experiment as module
from fgvclib.study.experiment import SETTING_2, Experiment
from fgvclib.study.table2 import ROWS
from fgvclib.study.trainings import wanted_runs


@pytest.fixture
def smoke(tmp_path, monkeypatch, splits):
    """An experiment with results and committed runs of its own; training and loading only say which folder they use."""
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "reference")
    monkeypatch.setattr(module, "train_or_load", lambda config, splits, seed, folder, announce: ("trained", folder))
    experiment = Experiment("smoke", "synthbirds", [0])
    experiment.splits = splits
    return experiment


def committed(experiment, monkeypatch, answer, row="End-to-end"):
    folder = module.SHIPPED / "smoke-synthbirds" / "runs" / experiment.run_folder(row).name
    folder.mkdir(parents=True)
    (folder / "metrics.json").touch()  # what marks a finished run

    def load(config, splits, seed, asked, announce):
        assert asked == folder and seed == 0
        return answer()

    monkeypatch.setattr(module, "load_run", load)


def test_committed_run_is_taken_where_none_is_trained(smoke, monkeypatch):
    committed(smoke, monkeypatch, lambda: "the committed run")
    assert smoke.trained("End-to-end") == "the committed run"


def test_a_run_of_this_machine_comes_first(smoke, monkeypatch):
    committed(smoke, monkeypatch, lambda: pytest.fail("the committed run was asked for"))
    (smoke.run_folder("End-to-end") / "metrics.json").parent.mkdir(parents=True)
    (smoke.run_folder("End-to-end") / "metrics.json").write_text("{}")
    assert smoke.trained("End-to-end") == ("trained", smoke.run_folder("End-to-end"))


def test_setting_2_is_trained_where_no_committed_run_has_it_or_it_was_trained_here(smoke, monkeypatch):
    assert (SETTING_2, 0) in wanted_runs(smoke)
    committed(smoke, monkeypatch, lambda: "the committed run", SETTING_2)
    assert sorted(wanted_runs(smoke)) == sorted((row, 0) for row in ROWS)
    assert wanted_runs(smoke, [SETTING_2]) == [(SETTING_2, 0)]
    smoke.run_folder(SETTING_2).mkdir(parents=True)
    (smoke.run_folder(SETTING_2) / "metrics.json").write_text("{}")
    assert (SETTING_2, 0) in wanted_runs(smoke)  # --fresh trains it anew


def test_a_committed_run_of_other_photos_is_named_and_left(smoke, monkeypatch):
    def other():
        raise ValueError("it holds another run (other photos).")

    said = []
    committed(smoke, monkeypatch, other)
    assert smoke.trained("End-to-end", announce=said.append)[0] == "trained"
    assert said == ["The committed run is of no use here: it holds another run (other photos)."]


def test_table_of_this_machine_comes_before_the_committed_one(smoke):
    assert smoke.find_table("rates") is None
    for folder, rate in ((module.SHIPPED / smoke.folder.name, 0.1), (smoke.folder, 0.2)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rates.csv").write_text(f"system,learning_rate\nmmal,{rate}\n")
        assert smoke.find_table("rates").to_dict("list") == {"system": ["mmal"], "learning_rate": [rate]}


def test_other_values_have_a_folder_of_their_own(smoke):
    other = Experiment("smoke", "synthbirds", [1, 2], {"epochs": 1}).with_values(learning_rate=0.5)
    assert (other.config.epochs, other.config.learning_rate, other.seeds) == (1, 0.5, [1, 2])
    assert other.folder != smoke.folder


def test_other_values_leave_what_was_asked_for_as_it_is():
    """Also values that no result depends on, and that a folder is not named after."""
    asked = Experiment("smoke", "synthbirds", [0], {"workers": 7, "epochs": 1})
    assert asked.config.workers != Experiment("smoke", "synthbirds").config.workers
    other = asked.with_values(learning_rate=0.5)
    assert (other.config.workers, other.config.epochs) == (7, 1)
    assert other.folder == Experiment("smoke", "synthbirds", [0], {"epochs": 1, "learning_rate": 0.5}).folder


def test_without_committed_runs_it_is_trained(smoke):
    assert smoke.trained("End-to-end")[0] == "trained"
    assert not smoke.is_trained("End-to-end")
