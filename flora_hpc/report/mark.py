"""By what a page of ours is known, so that nothing else is written over."""

MARK = '<meta name="generator" content="flora-hpc report">'
