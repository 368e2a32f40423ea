"""The mark of a page of `flora-hpc report`: a file without it is never overwritten."""

MARK = '<meta name="generator" content="flora-hpc report">'
