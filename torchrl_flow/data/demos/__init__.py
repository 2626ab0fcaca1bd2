"""Demonstrations: episodes, trajectory files, memory-mapped stores, samples of action chunks."""
