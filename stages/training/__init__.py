"""The loop that every training stage shares: batches in, loss out, exact resume."""
