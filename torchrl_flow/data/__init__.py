"""torchrl_flow."""
