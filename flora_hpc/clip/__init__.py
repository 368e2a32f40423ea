"""open_clip models, opened up so that adapters can sit on every projection."""

from flora_hpc.clip import library as library  # before any module imports open_clip
