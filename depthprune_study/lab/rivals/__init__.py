"""Rivals of depth pruning: narrower MLPs, fewer bits, other training-free repairs of a cut."""

from depthprune_study.lab.rivals.maps import METHODS, training_free
from depthprune_study.lab.rivals.rounding import rounded
from depthprune_study.lab.rivals.width import narrowed

__all__ = ["METHODS", "narrowed", "rounded", "training_free"]
