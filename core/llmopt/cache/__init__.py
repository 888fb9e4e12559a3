"""Cache stores, in memory and on disk, and freshness rules."""
