"""Ranks: their launcher, their communication and its cost."""
