"""Rasters mapped in overlapping windows: reading, looking, blending."""
