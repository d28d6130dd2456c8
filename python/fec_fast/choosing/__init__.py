"""Choosing: what networks of several sizes are worth, measured, and which of them to take."""
