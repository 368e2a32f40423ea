"""Rules by which the server applies the mean update; one file each."""
