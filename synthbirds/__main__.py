"""A process that draws: `dataset.generate` starts it, gives it jobs and reads boxes."""

import sys

from synthbirds.dataset import draw_as_worker

draw_as_worker(sys.stdin, sys.stdout)
