"""The flow actor, its configuration, and actors built around it."""
