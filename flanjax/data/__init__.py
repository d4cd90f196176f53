"""tokens, cache, mixing, packing: from seqio tasks to batches."""
