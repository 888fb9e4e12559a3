"""Vectors into files: .npy, .jsonl, .parquet; row by row, so that memory stays flat."""
