"""What makes a run the run that it is: configuration, seed, data, number of processes."""

import hashlib

from fgvclib.config import END_TO_END, Config, differing_values, training_values
from fgvclib.data.checksums import are_other_data, photos_checksum
from fgvclib.data.index import BOX, CROP
from fgvclib.data.splits import Splits
from fgvclib.utils.parallel import process_state


def run_identity(config: Config, splits: Splits, seed: int) -> dict:
    """{config, seed, data, world_size} of a run, as its checkpoints and metrics.json hold them."""
    world_size = process_state().num_processes
    return {
        "config": training_values(config),
        "seed": seed,
        "data": data_checksums(splits, config),
        "world_size": world_size,
    }


def data_checksums(splits: Splits, config: Config) -> dict[str, str]:
    """Checksums of the classes, the labels with the split, the boxes that are scored or cropped to, and the photos."""
    tables = [splits.train, splits.validation, splits.test]
    boxes = [table[BOX] for table in tables[1:]]
    if config.fixed_box == "oracle":
        boxes.append(splits.train[CROP])
    if config.fixed_box == "attnet":
        boxes += [table[CROP] for table in tables if CROP[0] in table]  # there are none yet while AttNet learns
    return {
        "classes": _digest("\n".join(splits.class_names)),
        "labels": _digest("\n".join(table[["image_id", "label"]].to_csv(index=False) for table in tables)),
        "boxes": _digest("\n".join(table.to_csv(index=False, float_format="%.4f") for table in boxes)),
        "photos": photos_checksum([path for table in tables for path in table["path"]], config),
    }


def differences(there: dict, now: dict) -> list[str]:
    """How a stored identity differs from the present one, in words; data that were not recorded count as equal.

    Stored values of earlier versions: a configuration key that is absent has its default, and so have the processes.
    """
    found = differing_values(_of_one_run(there["config"]), _of_one_run(now["config"]))
    if there["seed"] != now["seed"]:
        found.append(f"seed: {there['seed']} there, {now['seed']} now")
    if there.get("world_size", 1) != now["world_size"]:
        found.append(f"processes: {there.get('world_size', 1)} there, {now['world_size']} now")
    data = there.get("data", now["data"])
    found += [f"other {part}" for part, checksum in now["data"].items() if are_other_data(data.get(part), checksum)]
    return found


def _of_one_run(values: dict) -> dict:
    """Values without the keys that have no effect on a single run."""
    values = Config().values() | values
    idle = {"profile", "setting2_backbone", "setting2_embedding_dim"}  # `backbone` has what the row takes from them
    local = values["lambda_att"] or values["lambda_aff"]
    localises = values["system"] == END_TO_END and (local or values["beta_att"] or values["beta_aff"])
    if not localises:
        idle.add("localisation_learning_rate")
    taught = localises and local and values["teacher_weights"] == "imagenet"
    if not (taught or values["fixed_box"] == "attnet"):
        idle.add("localisation_epochs")
    return {key: value for key, value in values.items() if key not in idle}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
