"""A stand-in for QGIS 4 where there is none: real PyQt6 below, and of QGIS as much as the plugin's windows touch."""
