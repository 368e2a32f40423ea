"""Observers, which are notified of each round; one file each."""
