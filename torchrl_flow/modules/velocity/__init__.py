"""Velocity networks of flow policies, conditioned on time and step size."""
