"""Who is told about each round; one file each."""
