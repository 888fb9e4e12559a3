"""The folder acme is another distribution; its tests run where that is installed."""

collect_ignore = ["acme"]
