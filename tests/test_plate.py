"""The plate of all species, which README and notebook 01 show."""

from pathlib import Path

import numpy as np
from PIL import Image

from synthbirds import species_list
from synthbirds.plate import paint_plate

COMMITTED = Path(__file__).parent.parent / "docs" / "images" / "plate.png"


def test_the_committed_plate_is_what_the_command_writes():
    """`python -m synthbirds.plate docs/images/plate.png`"""
    plate = paint_plate()
    small = [np.asarray(picture.convert("RGB").resize((40, 40))) for picture in (plate, Image.open(COMMITTED))]
    np.testing.assert_array_equal(*small)
    assert COMMITTED.stat().st_size < 400_000
    assert plate.width * plate.height > 100 * 100 * len(species_list())
