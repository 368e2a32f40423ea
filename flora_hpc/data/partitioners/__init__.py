"""Partitioners: rules that give examples to clients; one file each."""
