"""Loaders of teachers. Only precompute and the teacher's own training import this package."""
