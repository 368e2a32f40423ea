"""Studies: a grid of runs, played in one allocation, and what their repetitions say."""
