"""metrics over generated text."""
