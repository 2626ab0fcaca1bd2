"""The command line. Torch is imported only after a command that needs it was chosen."""

from torchrl_flow.commands.command_line import main

__all__ = ["main"]
