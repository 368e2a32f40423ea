"""What clients train; one file each."""
