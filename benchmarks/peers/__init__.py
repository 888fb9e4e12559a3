"""The contenders of `benchmarks.faults`, each in a process of its own, and the cases that they meet."""
