"""Checks of files before a loader reads them: archives, JSON, HDF5, memory maps and replay buffers."""
