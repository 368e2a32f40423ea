"""Who owns a run directory."""
