"""The command line. Nothing here imports torch before a command has been chosen that needs it."""

from torchrl_flow.commands.command_line import main

__all__ = ["main"]
