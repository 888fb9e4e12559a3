"""Plugins as they were written for the first contract: they are kept as they are, and must run unchanged."""
