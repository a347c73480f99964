"""What the core's tests share: a configuration that trains in a second, and SynthBirds drawn once for it."""

import multiprocessing
import os
import sys
from functools import partial

import pytest

import synthbirds
from fgvclib.config import load_config

# Several files are tested at a time: the kernels and commands that tests start share the cores, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# What takes half a minute or more, much of it spent waiting for kernels, servers and processes; the longest first.
LONG = (
    "notebooks",
    "runner",
    "browser",
    "trainings",
    "systems",
    "course",
    "parallel",
    "notebooks_without_boxes",
    "page",
    "book",
    "teacher_maps",
    "try_next",
)


def pytest_collection_modifyitems(items):
    """Long files first: the others fill the time in which these wait, and none is left to run alone at the end."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    """One thread for the tests' own tensors: they are small, and threads that wait for a busy core cost the most."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def data_root_of_its_own(tmp_path_factory):
    """Nothing that tests make lands in the user's data root: its cache of decoded photos would keep it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVC_DATA", str(tmp_path_factory.mktemp("root")))
        yield


def configured(**changes):
    """The smoke profile, smaller still: 3 classes, photos of 64 pixels, 3 steps an epoch."""
    values = {
        "num_classes": 3,
        "train_per_class": 5,
        "test_per_class": 3,
        "photo_size": 64,
        "image_size": 64,
        "crop_size": 32,
        "teacher_size": 64,
        "embedding_dim": 16,
        "batch_size": 4,
        "epochs": 2,
        "learning_rate": 0.003,
    }
    return load_config("smoke", **values | changes)


@pytest.fixture(scope="session")
def tiny():
    """The smallest configuration with weights that have learnt something."""
    return configured()


@pytest.fixture(scope="session")
def small():
    """For trainings with `pretrained=False`, on a network of timm that does an eighth of Lite0's work."""
    return configured(backbone="test_efficientnet", attnet_backbone="test_efficientnet")


@pytest.fixture(scope="module")
def untrained():
    """In place of timm's pre-trained weights, which would have to be fetched for `small`, the same random ones."""
    import timm  # late: both take seconds, and some test files do without
    import torch

    real = timm.create_model

    def create(tag, pretrained=False, **options):
        with torch.random.fork_rng(enabled=pretrained):
            if pretrained:
                torch.manual_seed(0)
            return real(tag, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create)
        yield


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """A data root (FGVC_DATA) in which the data set of `tiny` and `small` is drawn."""
    from fgvclib.data.splits import prepare_dataset  # late: brings torch, which some test files do without

    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVC_DATA", str(folder))
        patch.setattr(synthbirds, "generate", partial(synthbirds.generate, workers=0))
        prepare_dataset(configured())
    return folder


@pytest.fixture(scope="session")
def splits(data_folder):
    """12 training, 3 validation and 9 test photos."""
    from fgvclib.data.splits import load_splits

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVC_DATA", str(data_folder))
        return load_splits(configured())


@pytest.fixture(scope="session")
def processes():
    """Starts functions of a test module in clean processes with torch already imported: a second each, not ten.

    A fork of the test process itself cannot train: autograd refuses where its parent has used it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fgvclib.training.runs"])
    return context
