"""Command line of torchrl_flow: ``torchrl-flow``, or ``python -m torchrl_flow``."""

from __future__ import annotations

from torchrl_flow.commands.command_line import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
