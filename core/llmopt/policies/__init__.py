"""Policies: decisions that take their clock as an argument. `retry_loop` and `tasks` run coroutines for them."""
