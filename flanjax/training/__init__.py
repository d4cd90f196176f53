"""loss, optimizer, step, loop, checkpoints."""
