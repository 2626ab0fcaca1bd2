"""Latent policies that choose the noise of a frozen flow (DSRL)."""
