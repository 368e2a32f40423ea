"""Attacks: what faulty or malicious clients train or send."""
