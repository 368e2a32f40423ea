"""Methods: the tensors that clients train, and the forward pass; one file each."""
