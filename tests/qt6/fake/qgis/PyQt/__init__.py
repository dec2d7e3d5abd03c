"""What QGIS 4 puts before PyQt6."""
