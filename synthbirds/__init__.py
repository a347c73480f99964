"""SynthBirds: a seeded synthetic data set of fine-grained bird classes in the folder layout of CUB-200-2011.

The experiments need a data set that everyone can have at once, without a download, and that poses the problem of
the paper: classes that differ in small marks of an object whose size and place vary. Every picture shows one bird
on a cluttered background. Species come in genera of four sisters that share body plan and colours and differ in
one or two field marks only (a wing bar, an eye ring, the colour of the rump ...), so that a classifier must see the
bird large enough to tell them apart; neither the background nor the overall colour gives the class away. Species
are listed genus by genus: the first N hold sisters for every N above one.

Where to find what: `species` lists the species and their marks; `bird` and `landscape` paint with the tools of
`canvas`; `scene` stacks what they paint to a picture; `plate` shows
every species; `dataset` writes pictures and tables.
"""

from synthbirds.bird import paint_bird
from synthbirds.dataset import GENERATOR_VERSION, generate
from synthbirds.scene import Scene, compose, draw_bird, paint_scene
from synthbirds.species import Species, field_marks, species_list

__all__ = [
    "GENERATOR_VERSION",
    "Scene",
    "Species",
    "compose",
    "draw_bird",
    "field_marks",
    "generate",
    "paint_bird",
    "paint_scene",
    "species_list",
]
