"""The flow actor with learned noise in its sampling steps (ReinFlow)."""
