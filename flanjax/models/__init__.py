"""T5 and its parts."""
