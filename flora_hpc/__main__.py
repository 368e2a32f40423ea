"""`python -m flora_hpc` is `flora-hpc`."""

from flora_hpc.cli import main

main()
