"""Experiments on top: run as `python -m tools.sweep …`."""
