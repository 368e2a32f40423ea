"""Ranks: who they are, how they talk, what it costs."""
