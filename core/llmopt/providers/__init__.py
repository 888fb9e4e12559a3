"""Find installed plugins, call their hooks, and make providers of configured entries."""
