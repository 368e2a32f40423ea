"""Measured parts of the program."""
