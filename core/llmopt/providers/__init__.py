"""From an entry's name to a typed provider: discovery, the plugin manager, the checked facade."""
