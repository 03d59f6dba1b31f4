"""How figures are kept (pytest tests/report/test_figures.py)."""

from PIL import Image

from common.report.figures import grid_of_axes, save_figure


def test_a_figure_of_the_same_numbers_has_the_same_bytes_and_few_colours(tmp_path):
    for name in ("first.png", "second.png"):
        figure, [[axes]] = grid_of_axes(1, 1, 4, 3)
        axes.plot([0, 1, 2], [0.1, 0.4, 0.2])
        save_figure(figure, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    with Image.open(tmp_path / "first.png") as kept:
        assert (kept.mode, kept.size, kept.text) == ("P", (400, 300), {})
