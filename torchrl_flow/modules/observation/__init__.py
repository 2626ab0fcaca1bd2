"""Encoders and normalisers of observations."""
