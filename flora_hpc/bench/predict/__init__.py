"""`flora-hpc predict`: what a round would take elsewhere, from the phases of runs that were measured."""
