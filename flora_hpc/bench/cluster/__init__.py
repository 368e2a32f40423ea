"""`flora-hpc bench cluster`: fixed work on 1, 2, 4, ... nodes, with one number and a proof by digests."""
