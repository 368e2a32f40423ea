"""open_clip models, opened up so that adapters can sit on every projection."""
