"""Logged transitions in `.npz` files."""
