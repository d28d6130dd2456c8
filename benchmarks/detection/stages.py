"""Stages of the detection benchmark: what is trained and measured of every seed."""

from __future__ import annotations

DENSE, PRUNED = "dense", "pruned and recovered"
DENSE_TRAINED, PRUNED_TRAINED = "dense, trained further", "pruned, recovered, trained further"
STAGES = (DENSE, PRUNED, DENSE_TRAINED, PRUNED_TRAINED)
IMITATED = ("backbone.features", "backbone.extra.0", "backbone.extra.1")  # layers whose features are imitated
