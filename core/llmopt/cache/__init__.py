"""Where answers are kept: one interface, in memory and on disk."""
