"""Pictures of what the program does, for a terminal and for a page."""
