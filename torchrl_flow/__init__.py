"""Flow policies on action chunks, as TorchRL components."""

__version__ = "0.1.0"
