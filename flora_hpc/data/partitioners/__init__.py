"""Rules that give examples to clients; one file each."""
