"""The grid by Snakemake: which jobs, in which order, retried, killed and continued; and the tables put together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fgvclib.config import PROJECT, load_config
from fgvclib.study.aggregate import aggregate, beside_paper
from fgvclib.study.table2 import ROWS
from fgvclib.tools.cli import main

SNAKEFILE = PROJECT / "cluster" / "Snakefile"
SETTINGS = yaml.safe_load((PROJECT / "cluster" / "config.yaml").read_text(encoding="utf-8"))
SNAKEMAKE = shutil.which("snakemake")
needs_snakemake = pytest.mark.skipif(SNAKEMAKE is None, reason="Snakemake is not here: pip install -e '.[cluster]'")

# Stands in for `python -m fgvclib …`: notes the command, and makes the files that the real one would make.
STAND_IN = """#!{python}
import pathlib, re, sys, time
command, here = sys.argv[3:], pathlib.Path({here!r})
with open(here / "commands", "a") as log:
    log.write(" ".join(command) + "\\n")
print("working on", command)
value = dict(zip(command, command[1:]))
if value.get("--rows") == "No end-to-end" and not (here / "failed").exists():
    (here / "failed").touch()
    sys.exit("out of memory")
if value.get("--rows") == "End-to-end" and (here / "slow").exists():
    (here / "started").touch()
    time.sleep(60)
dataset = value.get("--dataset") or command[1]  # fgvc data NAME
folder = here / "results" / ("smoke-" + dataset)
if command[0] == "train":
    made = [folder / "runs" / (value["--rows"].replace(" ", "-") + "-seed" + value["--seeds"]) / "metrics.json"]
elif command[0] == "run":
    made = [folder / "notebooks" / {{"05": "05_ablation.ipynb", "07": "07_comparison.ipynb"}}[command[1]]]
elif command[0] == "tables":
    made = [here / "results" / "tables-smoke-synthbirds+cub200" / name for name in ("table2.csv", "table3.csv")]
else:
    made = []
for path in made:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
"""


@pytest.fixture
def grid(tmp_path):
    """Starts Snakemake on two cores for 5 rows x 1 seed x 2 data sets, with the stand-in for the real work.

    Its `args` end with the configuration: what is added there counts.
    """
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, here=str(tmp_path)))
    python.chmod(0o755)
    config = ["profile=smoke", "datasets=synthbirds,cub200", "seeds=4", f"python={python}", "cpus=1"]
    options = ["--cores", "2", "--retries", "1", "--rerun-incomplete", "--nocolor", "--config", *config]
    command = [SNAKEMAKE, "-s", str(SNAKEFILE), "--directory", str(tmp_path), *options]
    return partial(
        subprocess.Popen,
        command,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "FGVC_RESULTS": str(tmp_path / "results"), "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def commands(folder: Path) -> list[str]:
    return (folder / "commands").read_text().splitlines()


@needs_snakemake
def test_grid_of_one_data_set_ends_with_its_own_tables(grid, tmp_path):
    """`fgvc tables` of one data set prints those of its folder, and writes none beside it."""
    command = [*grid.args[0], "datasets=synthbirds", "rows=Baseline"]
    done = subprocess.run(command, env=grid.keywords["env"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran = [line.split(" --profile")[0] for line in commands(tmp_path)]
    assert ran[0] == "data synthbirds" and ran[-1] == "run 07 --dataset synthbirds --seeds 4" and len(ran) == 5
    assert (tmp_path / "results" / "smoke-synthbirds" / "notebooks" / "07_comparison.ipynb").exists()


@needs_snakemake
def test_killed_grid_is_continued_with_what_is_missing(grid, tmp_path):
    (tmp_path / "slow").touch()
    process, deadline = grid(), time.monotonic() + 600
    while not (tmp_path / "started").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    process.communicate(timeout=600)
    assert process.returncode != 0 and not list((tmp_path / "results").glob("tables-*"))
    done = {path.parent for path in (tmp_path / "results").glob("*/runs/*/metrics.json")}
    before = len(commands(tmp_path))
    (tmp_path / "slow").unlink()

    process = grid()
    told = process.communicate(timeout=600)[0]
    assert process.returncode == 0, told
    assert (tmp_path / "results" / "tables-smoke-synthbirds+cub200" / "table3.csv").exists()
    again = [line for line in commands(tmp_path)[before:] if line.startswith("train")]
    assert len(done) + len([line for line in again if "No end-to-end" not in line]) >= 10
    ran = commands(tmp_path)
    for dataset in ("synthbirds", "cub200"):
        cells = [line for line in ran if line.startswith("train") and f"--dataset {dataset} " in line]
        trained = {re.search("--rows (.*) --seeds 4 --dataset .* --profile smoke", line)[1] for line in cells}
        assert trained == {*ROWS, "setting 2"}
        ablation = f"run 05 --dataset {dataset} --seeds 4 -p rows {json.dumps(list(ROWS))} --profile smoke"
        comparison = f"run 07 --dataset {dataset} --seeds 4 --profile smoke"
        assert max(ran.index(line) for line in cells) < ran.index(ablation) < ran.index(comparison)
    assert ran[-1] == "tables --dataset synthbirds,cub200 --profile smoke"
    failed = [line for line in ran if "No end-to-end" in line and line.startswith("train")]
    assert len(failed) == len(set(failed)) + 1  # once more than needed: the retry
    assert "working on" in (tmp_path / "results/smoke-cub200/logs/Baseline-seed4.log").read_text()

    process = grid()
    assert "Nothing to be done" in process.communicate(timeout=600)[0]
    assert commands(tmp_path) == ran


@needs_snakemake
def test_grid_of_the_configuration_is_planned(tmp_path):
    """As docs/cluster.md starts it, without any --config."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "FGVC_RESULTS": str(tmp_path), "HOME": str(tmp_path)}
    command = [SNAKEMAKE, "-s", str(SNAKEFILE), "--directory", str(tmp_path), "--dry-run", "--cores", "1", "--nocolor"]
    planned = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", planned.stdout, re.MULTILINE))
    assert jobs["cell"] == str((len(ROWS) * len(SETTINGS["seeds"]) + 1) * len(SETTINGS["datasets"]))


def test_grid_of_the_configuration_is_the_papers():
    assert SETTINGS["rows"] == list(ROWS)
    assert len(SETTINGS["seeds"]) == 3
    for dataset in SETTINGS["datasets"]:
        load_config(SETTINGS["profile"], dataset, **SETTINGS["set"])


# --- the tables over data sets


def write_tables(root: Path, dataset: str, accuracy: float, seeds: str) -> None:
    folder = root / f"smoke-{dataset}"
    folder.mkdir(parents=True)
    rows = pd.DataFrame({"description": ["Baseline", "End-to-end"], "accuracy_mean": [accuracy, accuracy + 1]})
    rows.to_csv(folder / "table2.csv", index=False)
    source = ["paper", "measured here, smoke profile"]
    table3 = {"method": ["Ours", "End-to-end"], "cub200_2011": [89.5, None], "source": source, "seeds": ["", seeds]}
    pd.DataFrame(table3 | {f"measured_{dataset}": [None, accuracy + 1]}).to_csv(folder / "table3.csv", index=False)


@pytest.mark.parametrize("seeds", ["0 1", "0"])
def test_tables_of_two_data_sets_are_put_together(tmp_path, monkeypatch, seeds):
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    write_tables(tmp_path, "synthbirds", 60.0, seeds)
    with pytest.raises(ValueError, match=r"smoke-cub200.table2\.csv does not exist; notebooks 05 and 07 make them"):
        aggregate("smoke", ["synthbirds", "cub200"])
    write_tables(tmp_path, "cub200", 70.0, seeds)
    assert main(["tables", "--dataset", "synthbirds,cub200", "--profile", "smoke"]) == 0
    folder = tmp_path / "tables-smoke-synthbirds+cub200"
    table2 = pd.read_csv(folder / "table2.csv")
    assert table2.values.tolist() == [["synthbirds", "Baseline", 60], ["synthbirds", "End-to-end", 61],
                                      ["cub200", "Baseline", 70], ["cub200", "End-to-end", 71]]  # fmt: skip
    table3 = pd.read_csv(folder / "table3.csv", dtype={"seeds": str})
    assert table3["method"].tolist() == ["Ours", "End-to-end"]  # the published row once
    assert table3["cub200_2011"].isna().tolist() == [False, True]
    assert table3.loc[1, ["measured_synthbirds", "measured_cub200", "seeds"]].tolist() == [61, 71, seeds]


def test_beside_paper():
    table = pd.DataFrame({"parameters": [12, 4567], "iou_gt_0.80": [0.5, 1.0], "paper_parameters": [12, None],
                          "paper_code": ["a", "b"], "paper_iou_gt_0.80": [0.98765, 0.5]})  # fmt: skip
    assert beside_paper(table).to_dict("list") == {
        "parameters": ["12 | 12", "– | 4567"],
        "iou_gt_0.80": ["0.988 | 0.500", "0.500 | 1"],
        "paper_code": ["a", "b"],
    }


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_steps_for_a_gpu_go_on_to_their_end_wherever_they_are_called(tmp_path):
    """With a stand-in for Python, which does nothing and succeeds."""
    environment = os.environ | {"PYTHON": "true", "PROFILE": "smoke", "FGVC_RESULTS": str(tmp_path), "SEEDS": "0"}
    for folder, script in ((PROJECT / "benchmarks", "./gpu.sh"), (PROJECT, "benchmarks/gpu.sh")):
        ended = subprocess.run([script, "all"], cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert "All steps are done" in ended.stdout
        assert (tmp_path / "gpu-steps-smoke" / "cub25-table").exists()
        again = subprocess.run([script], cwd=folder, env=environment, capture_output=True, text=True)
        assert again.returncode == 0 and "==" not in again.stdout
        others = environment | {"SYNTH_SET": "--set epochs=3"}  # other steps, which were never run
        again = subprocess.run([script], cwd=folder, env=others, capture_output=True, text=True)
        assert again.returncode == 75 and "== efficiency-fp32" in again.stdout
        shutil.rmtree(tmp_path / "gpu-steps-smoke")


def test_documented_launches_agree_with_the_precision_that_they_ask_for():
    page = (PROJECT / "docs" / "cluster.md").read_text(encoding="utf-8")
    launches = [line for line in page.splitlines() if line.startswith("accelerate launch")]
    assert any("--set precision=bf16" in line for line in launches)
    assert not any("--mixed_precision" in line for line in launches)  # which `create_accelerator` refuses
