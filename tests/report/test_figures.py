"""How figures are kept (pytest tests/report/test_figures.py)."""

from PIL import Image

from common.evaluation.result import Result
from common.report.figures import grid_of_axes, safety_utility_figure, save_figure
from common.schema import Metric


def test_a_figure_of_the_same_numbers_has_the_same_bytes_and_few_colours(tmp_path):
    for name in ("first.png", "second.png"):
        figure, [[axes]] = grid_of_axes(1, 1, 4, 3)
        axes.plot([0, 1, 2], [0.1, 0.4, 0.2])
        save_figure(figure, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    with Image.open(tmp_path / "first.png") as kept:
        assert (kept.mode, kept.size, kept.text) == ("P", (400, 300), {})


def test_rows_without_utility_are_a_sentence_and_no_error():
    metric = Metric(experiment="safety", method="dpo", seed=0, metric="aligned", value=0.5, low=0.4, high=0.6, n=10)
    (axes,) = safety_utility_figure([Result("dpo", 0, "", [metric])]).axes
    assert [text.get_text() for text in axes.texts] == ["no benign prompts, so no utility to draw"] and not axes.collections
