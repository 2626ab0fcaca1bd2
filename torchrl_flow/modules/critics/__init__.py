"""Critics of action chunks, of latents, and of states."""
