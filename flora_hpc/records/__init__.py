"""What is known about a round, and the HDF5 file that keeps it."""
