"""Demonstrations: episodes, trajectory files, memory-mapped stores and action chunks."""
