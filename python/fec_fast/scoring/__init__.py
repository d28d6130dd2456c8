"""Scoring: the entropy of every filter of a model, its formula, and the backends that compute it."""
