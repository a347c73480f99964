"""Data sets, and the batches that a training is fed with."""
