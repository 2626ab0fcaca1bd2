"""Replay of demonstrations beside online data, with a fixed ratio in each batch."""
