"""Draw docs/images/explorer.gif from the trained system: `python docs/images/explorer_gif.py`.

The threshold moves up and down over a test photo on which the exact box and AffNet's differ.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fgvclib.apps.explorer import Explorer
from fgvclib.study.experiment import Experiment

TARGET = Path(__file__).with_name("explorer.gif")
PHOTO = 166  # of the test table: there the exact box must be tight enough, and AffNet's always is
WIDTH, MILLISECONDS = 800, 280


def main() -> None:
    """Write the picture."""
    explorer = Explorer(Experiment("cpu", "synthbirds"))
    photo = explorer.test_photo(PHOTO)
    rising = np.linspace(0.2, 0.8, 11)
    frames = [explorer.draw("End-to-end", photo, tau=float(tau))[0] for tau in [*rising, *rising[-2:0:-1]]]
    height = round(frames[0].height * WIDTH / frames[0].width)
    small = [frame.convert("RGB").resize((WIDTH, height)).quantize(160, dither=Image.Dither.NONE) for frame in frames]
    small[0].save(TARGET, save_all=True, append_images=small[1:], duration=MILLISECONDS, loop=0, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
