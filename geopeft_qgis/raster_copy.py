"""Pixels that only QGIS can get, written to a GeoTIFF piece by piece: web maps as pictures, the rest as values."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsFeedback,
    QgsRasterBlock,
    QgsRasterBlockFeedback,
    QgsRasterDataProvider,
    QgsRasterFileWriter,
    QgsRectangle,
)
from qgis.PyQt.QtGui import QImage

from .copy_plan import CopyError, Grid, common_type
from .language import tr
from .part_names import part_of
from .server_answers import ServerAnswers
from .sources import gdal_python, is_picture

PIECE_PX = 1024
ANSWER_S = 30.0
OPAQUE = bytes([0] + [255] * 255)


class CopyCanceled(Exception):
    """The user stopped the copy; nothing is left of it."""


def copy(
    provider: QgsRasterDataProvider,
    crs: QgsCoordinateReferenceSystem,
    grid: Grid,
    path: Path,
    feedback: QgsFeedback,
    answers: ServerAnswers,
) -> list[str]:
    """Writes the pixels of a grid to a GeoTIFF, piece by piece; the file appears when it is whole.

    A picture becomes red, green, blue and alpha (0 where the service has nothing), 8 bits each; values keep their
    type, their bands and their nodata.

    Args:
        provider: the source, used by this thread alone.
        crs: of the source.
        grid: as `plan` gives it.
        path: the GeoTIFF.
        feedback: takes percent, is asked for cancel.
        answers: hears the servers of the source.

    Returns:
        Sentences about what is worth knowing.

    Raises:
        CopyError, CopyCanceled.
    """
    part = part_of(path)
    try:
        return _Copy(provider, crs, grid, part, feedback, answers).write(path)
    finally:
        for leftover in (part, part.with_name(f"{part.name}.aux.xml")):
            with contextlib.suppress(OSError):
                leftover.unlink()


class _Copy:
    """One copy under way."""

    def __init__(
        self,
        provider: QgsRasterDataProvider,
        crs: QgsCoordinateReferenceSystem,
        grid: Grid,
        part: Path,
        feedback: QgsFeedback,
        answers: ServerAnswers,
    ) -> None:
        self._provider = provider
        self._crs = crs
        self._grid = grid
        self._part = part
        self._feedback = feedback
        self._answers = answers
        self._is_picture = is_picture(provider)
        self._type = Qgis.DataType.Byte if self._is_picture else common_type(provider)
        self._bands = 4 if self._is_picture else provider.bandCount()
        self._empty_pieces = 0

    def write(self, path: Path) -> list[str]:
        """Fetches, writes, reads back, and moves the file to its place."""
        pieces = list(_pieces(self._grid.width, self._grid.height))
        target = self._create()
        sums: list[int] = []
        try:
            with _Watch(self._feedback, self._answers, self._is_picture) as watch:
                for number, piece in enumerate(pieces):
                    for band, block in enumerate(self._fetch(watch, piece, number, len(pieces)), 1):
                        sums.append(zlib.crc32(bytes(block.data())))
                        if not target.writeBlock(block, band, piece[0], piece[1]):
                            raise self._cannot_write()
                    self._feedback.setProgress(90 * (number + 1) / len(pieces))
            if self._empty_pieces == len(pieces):
                text = tr("The layer shows nothing in this extent. Choose another extent or another pixel size.")
                raise CopyError(text)
            # Closes the file and opens it again to read. Not with another object: PyQt hears of the end of one in this
            # thread late, by its address, and takes the next one there for it.
            if not target.setEditable(False):
                raise self._cannot_write()
            self._read_back(target, pieces, sums)
        finally:
            target.setEditable(False)
            del target
        notes = self._name_bands()
        try:
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._part, path)
        except OSError as error:
            raise self._cannot_write(error.strerror or str(error)) from error
        return notes

    def _create(self) -> QgsRasterDataProvider:
        writer = QgsRasterFileWriter(str(self._part))
        writer.setOutputFormat("GTiff")
        options = ["TILED=YES", "COMPRESS=DEFLATE", "BIGTIFF=IF_SAFER"]
        if self._is_picture:
            options += ["PHOTOMETRIC=RGB", "ALPHA=YES"]
        else:
            is_float = self._type in (Qgis.DataType.Float32, Qgis.DataType.Float64)
            options += ["INTERLEAVE=BAND", "PREDICTOR=3" if is_float else "PREDICTOR=2"]
        writer.setCreateOptions(options)
        grid = self._grid
        target = writer.createMultiBandRaster(self._type, grid.width, grid.height, grid.extent, self._crs, self._bands)
        if target is None or not target.isValid() or not (target.isEditable() or target.setEditable(True)):
            raise self._cannot_write()
        if not self._is_picture and self._nodata() is not None:
            for band in range(1, self._bands + 1):
                target.setNoDataValue(band, self._nodata())
        return target

    def _nodata(self) -> Optional[float]:
        for band in range(1, self._bands + 1):
            if self._provider.sourceHasNoDataValue(band):
                return float(self._provider.sourceNoDataValue(band))
        return None

    def _fetch(self, watch: _Watch, piece: tuple[int, int, int, int], number: int, count: int) -> Iterator[Any]:
        """The blocks of a piece, one for each band; asked for twice where the server fails."""
        col, row, width, height = piece
        extent = self._grid.piece(col, row, width, height)
        for band in range(1, 2 if self._is_picture else self._bands + 1):
            for attempt in (1, 2):
                block = watch.ask(self._provider, band, extent, width, height)
                if self._feedback.isCanceled():
                    raise CopyCanceled
                planes = _planes(block) if self._is_picture else [block]
                is_whole = self._is_picture and not planes[3].count(b"\0")
                # A failed request leaves a hole, which nobody could tell from a place without data afterwards.
                if watch.failure and not is_whole:
                    if attempt == 2 or watch.timed_out:
                        raise self._no_answer(watch, number, count)
                    continue
                if not block.isValid():
                    raise self._no_answer(watch, number, count)
                break
            if not self._is_picture:
                if block.dataType() != self._type:
                    block.convert(self._type)
                yield block
                continue
            self._empty_pieces += not planes[3].strip(b"\0")
            for plane in planes:
                part = QgsRasterBlock(Qgis.DataType.Byte, width, height)
                part.setData(plane)
                yield part

    def _no_answer(self, watch: _Watch, number: int, count: int) -> CopyError:
        if watch.timed_out:
            what = tr("did not answer within {seconds:.0f} seconds").format(seconds=ANSWER_S)
        else:
            what = tr("failed ({reason})").format(reason=watch.failure or tr("no reason given"))
        text = tr(
            "The server of the layer {what} at piece {number} of {count}; nothing is kept. "
            "Check the network and the layer's address, then run again, or choose a smaller extent."
        )
        return CopyError(text.format(what=what, number=number + 1, count=count))

    def _cannot_write(self, reason: str = "") -> CopyError:
        text = tr("{path} cannot be written{reason}. Free space there, or choose another place.")
        place = self._part.with_suffix("")
        return CopyError(text.format(path=place, reason=f" ({reason})" if reason else ""))

    def _read_back(
        self, written: QgsRasterDataProvider, pieces: list[tuple[int, int, int, int]], sums: list[int]
    ) -> None:
        """A full disk is not always reported when it fills: only what can be read again is there."""
        expected = iter(sums)
        for number, (col, row, width, height) in enumerate(pieces):
            for band in range(1, self._bands + 1):
                if self._feedback.isCanceled():
                    raise CopyCanceled
                extent = self._grid.piece(col, row, width, height)
                block = written.block(band, extent, width, height)
                if zlib.crc32(bytes(block.data())) != next(expected):
                    raise self._cannot_write()
            self._feedback.setProgress(90 + 10 * (number + 1) / len(pieces))

    def _name_bands(self) -> list[str]:
        """Gives values their bands' names, which QGIS's writer cannot; a sentence where that is not possible."""
        if self._is_picture:
            return []
        names = [band_name(self._provider, band) for band in range(1, self._bands + 1)]
        if not any(names):
            return []
        try:
            gdal = gdal_python()
            target = gdal.OpenEx(str(self._part), gdal.OF_UPDATE | gdal.OF_RASTER)
            for band, name in enumerate(names, 1):
                target.GetRasterBand(band).SetDescription(name)
            target.FlushCache()
        except (ImportError, RuntimeError, AttributeError):
            return [tr("The names of the bands could not be copied; the bands are in the same order.")]
        return []


class _Watch:
    """Bounds the time of each question to a provider, and says what went wrong."""

    def __init__(self, feedback: QgsFeedback, answers: ServerAnswers, wants_pictures: bool) -> None:
        self.failure = ""
        self.timed_out = False
        self._feedback = feedback
        self._answers = answers
        self._wants_pictures = wants_pictures
        self._question: Optional[QgsRasterBlockFeedback] = None
        self._asked_at = math.inf
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="raster copy watch")

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def ask(self, provider: QgsRasterDataProvider, band: int, extent: QgsRectangle, width: int, height: int) -> Any:
        """A block; afterwards `failure` says what went wrong, if anything."""
        self.failure, self.timed_out = "", False
        question = QgsRasterBlockFeedback()
        self._answers.clear()
        self._asked_at = time.monotonic()
        self._question = question
        try:
            block = provider.block(band, extent, width, height, question)
        finally:
            self._question = None
        self._answers.settle()
        said = " ".join(str(error) for error in question.errors())
        heard = self._answers.failures + (self._answers.no_pictures if self._wants_pictures else [])
        self.failure = (heard or [said])[0] or ("timeout" if self.timed_out else "")
        return block

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            question = self._question
            if question is None:
                continue
            is_late = time.monotonic() > max(self._asked_at, self._answers.last_at) + ANSWER_S
            if (is_late or self._feedback.isCanceled()) and not question.isCanceled():
                self.timed_out = is_late and not self._feedback.isCanceled()
                question.cancel()


def band_name(provider: QgsRasterDataProvider, band: int) -> str:
    """The name of a band without QGIS's 'Band 1'; empty where it has none."""
    name = str(provider.generateBandName(band))
    before, found, after = name.partition(": ")
    return after.strip() if found and str(band) in before else ""


def _pieces(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """(col, row, width, height) of the pieces; their edges are edges of the file's own tiles."""
    for row in range(0, height, PIECE_PX):
        for col in range(0, width, PIECE_PX):
            yield col, row, min(PIECE_PX, width - col), min(PIECE_PX, height - row)


def _planes(block: QgsRasterBlock) -> list[bytes]:
    """Red, green, blue and alpha of a picture; alpha is 0 or 255, since a pixel counts or does not."""
    image = block.image().convertToFormat(QImage.Format.Format_RGBA8888)
    if image.isNull():
        return [b"", b"", b"", b"\0"]
    bits = image.constBits()
    data = bytes(bits.asarray(image.sizeInBytes()))
    return [data[0::4], data[1::4], data[2::4], data[3::4].translate(OPAQUE)]
