"""A raster drawn part by part: the model looks at windows, what is finished becomes the rows of the map's files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from rasterio.windows import Window

from geopeft.class_raster import BLOCK_PX, NODATA, UNKNOWN, draw
from geopeft.data.labels import read_area
from geopeft.data.pixel_shapes import PixelShapes
from geopeft.data.raster import RasterInfo
from geopeft.errors import JobError, LabelError
from geopeft.events import Reporter
from geopeft.mapper import Mapper
from geopeft.mapping.pipeline import ahead, behind
from geopeft.mapping.strips import Mapping, Seen, Strip, axes_of
from geopeft.maps.parts import Order, Part, PartStore, Rows, Tally, kept, name_of, nothing

# Of the windows of a raster, the part that several machines may look at twice.
MOST_TWICE = 0.03


def most_runs(runtime: Mapper, info: RasterInfo) -> int:
    """In so many runs a raster may be mapped without more windows being looked at twice than MOST_TWICE allows."""
    return 1 + int(MOST_TWICE * len(axes_of(runtime, (info.height, info.width))[0]))


def windows_in(runtime: Mapper, info: RasterInfo, run: Sequence[Part]) -> int:
    """How many windows a run looks at."""
    rows, columns = axes_of(runtime, (info.height, info.width))
    return len(rows.touching(run[0].row0, run[-1].row1)) * len(columns)


def map_parts(
    runtime: Mapper, order: Order, store: PartStore, run: Sequence[Part], reporter: Reporter, stage: str = "predict"
) -> None:
    """Maps parts one below the other and keeps each as soon as it is finished.

    Raises:
        RasterError: RASTER_CHANGED, RASTER_READ and others; parts before are kept.
        OutputError: a part could not be written.
    """
    work = Work(runtime, order, reporter)
    total = windows_in(runtime, order.info, run)
    first = work.mapping.rows.touching(run[0].row0, run[-1].row1).start * len(work.mapping.columns)

    def tell(windows: int) -> None:
        reporter.progress(stage, windows - first, total)

    def keep(seen: Iterator[Seen]) -> None:
        for _ in kept(store, run, order.info, work.rows(run, seen)):
            pass

    behind(work.look(run, tell), keep)


class Work:
    """One raster, about to be mapped as it was ordered."""

    def __init__(self, runtime: Mapper, order: Order, reporter: Reporter) -> None:
        self.order = order
        self.mapping = Mapping(runtime, order.info, order.bands, reporter, order.every_px)
        clip = _Clip.read(order.aoi, order.info, reporter) if order.aoi else None
        # Each thread has its own: they remember masks.
        self._reading, self._drawing = clip, clip.again() if clip else None

    def look(self, run: Sequence[Part], tell: Callable[[int], None]) -> Generator[Seen, None, None]:
        """What the model says of the windows that a run needs.

        Args:
            tell: is given the number of the raster's windows that have been done with; may raise.
        """
        mapping = self.mapping
        windows = mapping.rows.touching(run[0].row0, run[-1].row1)
        tell(windows.start * len(mapping.columns))
        with ahead(mapping.read(windows, self._reading.touches if self._reading else None)) as batches:
            for seen in mapping.looked_at(batches):
                yield seen
                tell(seen.batch.row * len(mapping.columns) + seen.batch.until)

    def rows(self, run: Sequence[Part], seen: Iterator[Seen]) -> Iterator[Rows]:
        """The finished rows of a run from what `look` gives, which are taken one by one."""
        first, last = run[0].row0, run[-1].row1
        blend, canvas = self.mapping.blend(first, last), _Canvas(self.order, self.mapping, first, last, self._drawing)
        for one in seen:
            for found in blend.add(one):
                if isinstance(found, Strip):
                    canvas.put(found)
                    continue
                yield from canvas.finished(found.row)
                if found.row == last:
                    return


class _Canvas:
    """Gathers finished pixels to rows of the file's blocks."""

    def __init__(self, order: Order, mapping: Mapping, first: int, last: int, clip: _Clip | None) -> None:
        self._order, self._clip = order, clip
        self._row, self._last, self._drawn_until = first, last, first
        height = min(BLOCK_PX + mapping.rows.window_px, last - first)
        self._values = nothing(1 + len(order.layers), height, order.info.width).copy()
        # Of each row that is not given away: pixels judged, and those outside.
        self._judged = np.zeros((2, height), np.int64)

    def put(self, strip: Strip) -> None:
        """Draws pixels of rows that are not given away."""
        height, width = strip.mapped.shape
        kept = strip.mapped & self._clip.inside(strip) if self._clip else strip.mapped
        rows = slice(strip.row - self._row, strip.row - self._row + height)
        drawn = draw(strip, kept, self._order.layers, self._order.unknown_below)
        self._values[:, rows, strip.col : strip.col + width] = drawn
        self._drawn_until = max(self._drawn_until, strip.row + height)
        if strip.dissimilarity is not None:
            with np.errstate(invalid="ignore"):
                judged = kept & np.isfinite(strip.dissimilarity)
                self._judged[0, rows] += judged.sum(1)
                self._judged[1, rows] += (judged & (strip.dissimilarity > 1)).sum(1)

    def finished(self, row: int) -> Iterator[Rows]:
        """Gives the rows before `row` away, as far as they make whole blocks, and the last ones."""
        while self._row < row and (row == self._last or row >= self._row + BLOCK_PX):
            count = min(BLOCK_PX, row - self._row)
            if self._row >= self._drawn_until:
                yield Rows(self._row, nothing(len(self._values), count, self._order.info.width), Tally())
                self._row += count
                continue
            values = self._values[:, :count].copy()
            judged, outside = self._judged[:, :count].sum(1).tolist()
            classes = values[0]
            unknown = int((classes == UNKNOWN).sum()) if self._order.unknown_below > 0 else 0
            yield Rows(self._row, values, Tally(int((classes != NODATA).sum()), unknown, judged, outside))
            self._row += count
            self._values[:, :-count] = self._values[:, count:].copy()
            self._values[:, -count:] = nothing(len(values), count, self._order.info.width)
            self._judged[:, :-count], self._judged[:, -count:] = self._judged[:, count:].copy(), 0


class _Clip:
    """The area of interest on one raster."""

    def __init__(self, shapes: PixelShapes) -> None:
        self._shapes = shapes

    @classmethod
    def read(cls, aoi: str, info: RasterInfo, reporter: Reporter) -> _Clip:
        """JobError AREA_OUTSIDE where it does not touch the raster."""
        try:
            (shapes,) = read_area(aoi, [info], reporter)
        except LabelError as error:
            if error.code != "LABELS_OUTSIDE":
                raise
            message = f"{name_of(info.path)} lies outside the area of interest {aoi}."
            raise JobError(message, "Choose another area, or leave this raster out.", "AREA_OUTSIDE") from error
        return cls(shapes)

    def again(self) -> _Clip:
        """The same area, for another thread."""
        return _Clip(copy.copy(self._shapes))

    def touches(self, window: Window) -> bool:
        """Whether any pixel centre of the window lies inside."""
        return any(mask.any() for _, _, mask in self._shapes.masks(window))

    def inside(self, strip: Strip) -> np.ndarray:
        """(h, w) bool: pixels whose centre lies inside."""
        height, width = strip.mapped.shape
        inside = np.zeros((height, width), bool)
        for _, where, mask in self._shapes.masks(Window(strip.col, strip.row, width, height)):
            inside[where] |= mask
        return inside
