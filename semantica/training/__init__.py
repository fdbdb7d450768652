"""Batches -> checkpoint: one step, the loop around it, EMA, checkpoints. Pure torch; a shell in distributed/ brings the workers."""
