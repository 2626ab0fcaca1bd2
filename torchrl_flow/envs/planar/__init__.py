"""The planar pick-and-place task, vectorised in PyTorch, and its demonstrator."""
