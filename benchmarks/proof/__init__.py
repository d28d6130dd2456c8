"""Planted faults: which wrong surgeries the proof finds."""
