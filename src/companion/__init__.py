"""Companion to two papers on model-agnostic meta-learning (MAML).

Rooms: ``theory`` (mathematics), ``tasks`` (where tasks come from), ``adaptation``,
``meta_optimizers`` and ``objectives`` (one task at a time), ``experiments`` (whole fleets),
``evaluation`` (intervals), ``figures``. Imports run in that order and never back.
"""

__version__ = "0.1.0"
