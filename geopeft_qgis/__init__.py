"""GeoPEFT for QGIS: fine-tunes geospatial foundation models from a few labels."""


def classFactory(iface):  # noqa: N802, the name that QGIS calls
    """The plugin; imported here so that listing plugins stays instant."""
    from .plugin import GeopeftPlugin

    return GeopeftPlugin(iface)
