"""Rasters, bands, radiometry, labels and chips. Knows no models."""
