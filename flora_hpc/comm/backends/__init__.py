"""Ways for ranks to talk; one file each."""
