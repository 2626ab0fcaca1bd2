"""Replay of demonstrations and online data with a given ratio in each batch."""
