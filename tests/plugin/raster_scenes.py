"""Small rasters in UTM 32 N, named and made as those of satellites."""

import numpy
from osgeo import gdal, osr

LEFT, TOP = 500000.0, 5400000.0
S2 = "T32UMU_20230601T101031_{}_{}m.tif"


def make(path, values, pixel=10.0, nodata=None, crs=32632, left=LEFT, top=TOP, **more):
    """A GeoTIFF of values (h, w) or (bands, h, w)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = numpy.atleast_3d(values) if values.ndim == 3 else values[None]
    kinds = {"uint8": gdal.GDT_Byte, "uint16": gdal.GDT_UInt16, "int16": gdal.GDT_Int16, "float32": gdal.GDT_Float32}
    target = gdal.GetDriverByName("GTiff").Create(
        str(path), values.shape[2], values.shape[1], len(values), kinds[str(values.dtype)], more.get("options", [])
    )
    target.SetGeoTransform((left, pixel, more.get("turn", 0), top, more.get("turn", 0), -pixel))
    if crs:
        system = osr.SpatialReference()
        system.ImportFromEPSG(crs)
        target.SetProjection(system.ExportToWkt())
    target.SetMetadata(more.get("tags", {}))
    for number, plane in enumerate(values, 1):
        band = target.GetRasterBand(number)
        band.WriteArray(plane)
        if nodata is not None:
            band.SetNoDataValue(nodata)
        if "names" in more:
            band.SetDescription(more["names"][number - 1])
        if "scale" in more:
            band.SetScale(more["scale"])
            band.SetOffset(-0.1)
        if "wavelength" in more:
            band.SetMetadata({"wavelength": more["wavelength"]})
    if "mask" in more:
        target.CreateMaskBand(gdal.GMF_PER_DATASET)
        target.GetRasterBand(1).GetMaskBand().WriteArray(more["mask"])
    return path


def ramp(rows, columns, pixel=10.0, dtype="uint16", left=LEFT, top=TOP):
    """A plane: what bilinear resampling gives exactly, wherever it is looked at."""
    x = left + (numpy.arange(columns) + 0.5) * pixel - LEFT
    y = TOP - top + (numpy.arange(rows) + 0.5) * pixel
    return (100 + x[None, :] * 0.5 + y[:, None] * 2).round().astype(dtype)
