"""Which files of a folder are rasters to map."""

import pytest

from geopeft_qgis.raster_files import split_patterns, walk, without_maps


@pytest.fixture
def folder(tmp_path):
    for name in ("b.TIF", "a.vrt", "notes.txt", ".hidden.tif", "below/c.tif", "maps/a_map.tif", "maps/own.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


def names(folder, *arguments, **more):
    return sorted(path[len(str(folder)) + 1 :] for path in walk(str(folder), *arguments, **more))


def test_the_usual_formats_are_found_in_any_case_and_only_where_asked(folder):
    assert names(folder, split_patterns(""), False) == ["a.vrt", "b.TIF"]
    assert names(folder, split_patterns(""), True, leave_out=str(folder / "maps")) == ["a.vrt", "b.TIF", "below/c.tif"]
    assert names(folder, split_patterns(" *.TXT ; own*,"), True) == ["maps/own.tif", "notes.txt"]


def test_a_folder_that_is_searched_and_written_to_is_still_searched(folder):
    assert names(folder, split_patterns(""), False, leave_out=str(folder)) == ["a.vrt", "b.TIF"]


def test_a_folder_that_cannot_be_read_is_empty(tmp_path):
    assert list(walk(str(tmp_path / "none"), ("*.tif",), True)) == []


def test_links_that_lead_in_a_circle_are_not_followed(folder):
    try:
        (folder / "below" / "again").symlink_to(folder)
    except OSError:
        pytest.skip("no links can be made here")
    assert len(names(folder, ("*.tif",), True)) == 4


def test_maps_of_listed_rasters_are_left_out_and_tile_2_comes_before_tile_10():
    maps = ["/x/t2_map.tif", "/x/t2_map_3.tif", "/y/T10_map_confidence.tif", "/x/t2_map_outside.tif"]
    rasters = ["/x/other_map.tif", "/x/t2.tif", "/x/t2_mapped.tif", "/x/t10.tif"]
    assert without_maps([*maps, *rasters[::-1], *rasters]) == rasters
