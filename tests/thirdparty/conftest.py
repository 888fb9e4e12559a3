"""What is here belongs to a distribution of its own, whose tests run where that is installed."""

collect_ignore = ["acme"]
