"""Texts from files: a text a line, JSON lines, CSV; read piece by piece, with clear errors."""
