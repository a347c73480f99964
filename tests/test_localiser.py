"""The localiser in front of any network: the README's lines, and what it gives."""

import re

import timm
import torch
import torch.nn.functional as F

import fgvclib
from fgvclib import AffNet, AttNet, Localiser, Teacher, localisation_loss, model
from fgvclib.config import PROJECT

SECTION = (PROJECT / "README.md").read_text(encoding="utf-8").partition("In front of your own network")[2]
LINES = re.search(r"```python\n(.*?)```", SECTION, re.DOTALL).group(1).splitlines()


def test_readme_lines_train_a_timm_network_of_the_readers_own():
    torch.manual_seed(0)
    names = {"F": F, "AffNet": AffNet, "AttNet": AttNet, "Localiser": Localiser, "Teacher": Teacher}
    names |= {"localisation_loss": localisation_loss, "net": timm.create_model("convnext_atto", num_classes=4)}
    names |= {"images": torch.randn(8, 3, 128, 128), "labels": torch.arange(8) % 4}
    exec("\n".join(LINES[:3]), names)
    optimiser = torch.optim.Adam([*names["net"].parameters(), *names["localiser"].parameters()], 3e-4)
    losses = []
    for _ in range(5):
        exec("\n".join(LINES[3:]), names)
        optimiser.zero_grad()
        names["loss"].backward()
        optimiser.step()
        losses.append(names["loss"].item())
    assert len(LINES) == 6
    assert names["crop"].shape == (8, 3, 112, 112) and names["A"].shape == (8, 1, 14, 14)
    assert losses[-1] < 0.8 * losses[0], losses


def test_names_of_the_paper_are_at_the_top():
    for name in ("AttNet", "AffNet", "Localiser", "EndToEndModel", "localisation_loss", "clip_gradient", "widen"):
        assert getattr(fgvclib, name) is getattr(model, name)
    assert set(model.__all__) <= set(fgvclib.__all__)
