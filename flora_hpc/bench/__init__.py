"""Benchmarks of parts of the program."""
