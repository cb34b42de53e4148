"""Distil MedSAM2 into small promptable 3D segmentation models."""
