"""Labelled volumes that need no download: generated ones, a phantom and the MNI152 brain."""
