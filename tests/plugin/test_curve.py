"""The curve: what it draws, in narrow docks and dark themes."""

import pytest
from qgis.PyQt.QtGui import QColor, QFontMetrics, QImage, QPalette


@pytest.fixture
def curve(qgis_app):
    from geopeft_qgis.gui.curve import CurveWidget

    widget = CurveWidget()
    yield widget
    widget.deleteLater()


def fill(curve, steps=5, total=None):
    for step in range(1, steps + 1):
        values = {"loss": 1.5 / step, "validation_loss": 1.9 / step, "miou": 0.15 * step}
        curve.add({"step": step * 20, "values": values, **({"total": total} if total else {})})


def picture(curve, width=318, height=240):
    curve.resize(width, height)
    image = QImage(width, height, QImage.Format.Format_RGB32)
    curve.render(image)
    return image


def columns_of(image, color, tolerance=40):
    """Columns in which there are pixels of about this colour."""
    wanted = QColor(color)
    found = []
    for x in range(image.width()):
        for y in range(image.height()):
            seen = image.pixelColor(x, y)
            if max(abs(seen.getRgb()[part] - wanted.getRgb()[part]) for part in range(3)) < tolerance:
                found.append(x)
                break
    return found


def test_the_axis_ends_where_the_training_will_end(curve):
    from geopeft_qgis.gui.curve import ACCURACY

    blue = QColor(ACCURACY).darker(115).name()
    fill(curve)
    assert max(columns_of(picture(curve), blue)) > 270
    curve.clear()
    fill(curve, total=400)
    assert max(columns_of(picture(curve), blue)) < 150


def test_a_run_that_goes_on_tells_its_points_again_and_another_starts_empty(curve):
    fill(curve)
    assert [len(line.points) for line in curve.lines("loss")] == [5, 5]
    curve.clear()
    assert curve.lines("loss") == curve.lines("miou") == [] and curve.accessibleDescription() == ""


def test_figures_are_there_in_words(curve):
    fill(curve)
    assert curve.accessibleDescription() == "mIoU 0.75, training 0.30, validation 0.38"


def test_names_stay_and_values_go_where_there_is_little_room(curve):
    from geopeft_qgis.gui.curve import legend_texts

    fill(curve)
    lines, metrics = curve.lines("loss"), QFontMetrics(curve.font())
    assert legend_texts(lines, metrics, 1000) == ["training 0.30", "validation 0.38"]
    assert legend_texts(lines, metrics, 120) == ["training", "validation"]
    assert legend_texts(curve.lines("miou"), metrics, 10) == ["0.75"]


def test_a_caption_is_drawn_below_and_takes_room_only_when_it_is_there(curve):
    fill(curve)
    plain = picture(curve)
    curve.set_caption("Training: step 120 of 220, about 40 s left")
    assert picture(curve) != plain
    curve.set_caption("")
    assert picture(curve) == plain


@pytest.mark.parametrize(("base", "text"), [("#ffffff", "#000000"), ("#202020", "#000000"), ("#232629", "#eff0f1")])
def test_it_is_legible_in_light_and_dark_themes(curve, base, text):
    """Some dark themes leave black text in the palette."""
    palette = QPalette()
    palette.setColor(QPalette.ColorRole.Base, QColor(base))
    palette.setColor(QPalette.ColorRole.Text, QColor(text))
    curve.setPalette(palette)
    fill(curve)
    image = picture(curve)
    assert image.pixelColor(2, 2).name() == base
    inks = {image.pixelColor(x, y).lightness() for x in range(60) for y in range(240)}
    assert max(abs(ink - QColor(base).lightness()) for ink in inks) > 120


def test_odd_events_do_no_harm(curve):
    curve.add({})
    curve.add({"step": None, "values": {"loss": "much", "miou": 0.5, "seconds": 3}, "total": "many"})
    curve.add({"step": 0, "values": {"loss": 0.0}})
    picture(curve)
    picture(curve, 60, 40)
    assert [line.points for line in curve.lines("miou")] == [[(0.0, 0.5)]]
