"""Pictures for papers."""

from matplotlib.colors import to_hex

from research.eval.figures import MAX_LINES, figure, split_lines, write_picture


def plot_eight(path):
    with figure(path, (3, 2)) as (_, axes):
        for height in range(MAX_LINES):
            axes.plot([0, 1], [height, height])
        colors = {to_hex(line.get_color()) for line in axes.lines}
    assert len(colors) == MAX_LINES


def test_a_picture_is_an_svg_too_and_equal_pictures_are_equal_files(tmp_path):
    for name in ("a", "b"):
        write_picture(tmp_path / f"{name}.png", plot_eight)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawing = (tmp_path / "a.svg").read_text()
    assert "<svg" in drawing and drawing == (tmp_path / "b.svg").read_text()


def test_panels_have_at_most_eight_lines_and_about_as_many():
    names = [str(number) for number in range(17)]
    panels = split_lines(names)
    assert [len(panel) for panel in panels] == [6, 6, 5]
    assert sum(panels, []) == names
    assert split_lines(names[:8]) == [names[:8]] and split_lines([]) == []
