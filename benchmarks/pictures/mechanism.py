"""How pruning works, in three pictures: coupled channels, what surgery removes, and compensation."""

from __future__ import annotations

from benchmarks.pictures.svg import CELL, FAINT, INK, KEPT, OTHER, REMOVED, arrow, box, grid, sheet, stack, text

DARK = "#9a5b00"  # of OTHER, for text


def coupling() -> str:
    """Channels that a residual sum couples, and a set that is free of them."""
    top, middle = 92, 92 + 3 * CELL
    shapes = []

    def layer(x: float, name: str, *lines: tuple[str, str]) -> None:
        shapes.append(box(x, middle - 34, 106, 68))
        shapes.append(text(x + 53, middle - 14, name, anchor="middle", bold=True))
        for number, (words, colour) in enumerate(lines):
            shapes.append(text(x + 53, middle + 6 + 18 * number, words, anchor="middle", fill=colour, size=13))

    layer(16, "conv 0", ("loses filter 3", REMOVED))
    layer(206, "conv 1", ("loses input 3", REMOVED), ("loses filter 1", DARK))
    layer(396, "conv 2", ("loses input 1", DARK), ("loses filter 3", REMOVED))
    layer(738, "conv 3", ("loses input 3", REMOVED))
    for x, channels, removed in ((152, 6, 3), (532, 6, 3), (676, 6, 3)):
        shapes.append(stack(x, top, channels, [removed]))
    shapes.append(stack(342, top + CELL, 4, [1], colour=OTHER))
    shapes.append(f'<circle cx="616" cy="{middle}" r="16" fill="#fff" stroke="{INK}" stroke-width="1.5"/>')
    shapes.append(text(616, middle + 6, "+", anchor="middle", size=20, bold=True))
    for start, end in ((122, 150), (174, 204), (312, 340), (364, 394), (502, 530), (554, 598), (632, 674), (698, 736)):
        shapes.append(arrow((start, middle), (end, middle)))
    shapes.append(arrow((163, top - 2), (163, 60), (616, 60), (616, middle - 18)))
    shapes.append(text(390, 52, "skip connection: the sum adds channel 3 of both", anchor="middle", size=13))
    low = top + 6 * CELL
    shapes.append(
        text(
            16,
            low + 34,
            "Coupled set A, red: channel 3 of conv 0, of conv 2 and of their sum. It is removed everywhere or nowhere.",
            fill=REMOVED,
        )
    )
    shapes.append(
        text(
            16,
            low + 58,
            "Coupled set B, with orange cells: the channels between conv 1 and conv 2. They are free of the sum.",
            fill=DARK,
        )
    )
    shapes.append(
        text(
            16,
            low + 82,
            "Each red cross is one index of a tensor. The norms (not drawn) lose the same indices.",
            fill=INK,
        )
    )
    return sheet(860, low + 104, "Channels that a residual sum couples are removed together", shapes)


def surgery() -> str:
    """Rows of one weight and columns of the next."""
    y, left, right = 84, 40, 500
    shapes = [
        text(left, 34, "Before", bold=True, size=16),
        text(right, 34, "After", bold=True, size=16),
        text(left, 66, "conv 1: 6 filters, 4 inputs"),
        text(left + 220, 66, "conv 2: 5 filters, 6 inputs"),
        text(right, 66, "4 filters, 4 inputs"),
        text(right + 190, 66, "5 filters, 4 inputs"),
        grid(left, y, 6, 4, gone_rows=[1, 4]),
        grid(left + 220, y, 5, 6, gone_columns=[1, 4]),
        grid(right, y, 4, 4),
        grid(right + 190, y, 5, 4),
        arrow((430, y + 3 * CELL), (482, y + 3 * CELL), width=2.5),
        text(left + 4 * CELL + 12, y + 1.7 * CELL, "filter 1", fill=REMOVED, size=13),
        text(left + 4 * CELL + 12, y + 4.7 * CELL, "filter 4", fill=REMOVED, size=13),
        text(left + 220, y + 5 * CELL + 22, "input slices 1 and 4", fill=REMOVED, size=13),
    ]
    low = y + 6 * CELL + 34
    shapes.append(text(left, low, "A row is a filter, a column an input channel; each cell has 3 x 3 weights."))
    shapes.append(
        text(
            left,
            low + 24,
            "9 x (24 + 30) = 486 parameters become 9 x (16 + 20) = 324. The kept weights are copied bit for bit.",
        )
    )
    return sheet(
        860, low + 46, "Surgery removes filters of a layer, and the slices of the next layer that read them", shapes
    )


def compensation() -> str:
    """What the kept channels take over."""
    shapes = []

    def panel(x: float, title: str, weights: tuple[str, str, str], result: str, gone: bool) -> None:
        shapes.append(text(x, 34, title, bold=True, size=16))
        for number, weight in enumerate(weights):
            y = 62 + 62 * number
            removed = gone and number == 1
            colour = REMOVED if removed else KEPT
            shapes.append(f'<rect x="{x}" y="{y}" width="46" height="34" rx="4" fill="{colour}"/>')
            shapes.append(text(x + 23, y + 23, f"x{number + 1}", anchor="middle", fill="#fff", bold=True))
            if not removed:
                shapes.append(arrow((x + 48, y + 17), (x + 176, 141)))
                height = (71, 133, 219)[number]
                shapes.append(text(x + 84, height, weight, size=13))
        shapes.append(f'<circle cx="{x + 194}" cy="141" r="17" fill="#fff" stroke="{INK}" stroke-width="1.5"/>')
        shapes.append(text(x + 194, 146, "y", anchor="middle", bold=True))
        shapes.append(text(x, 262, result, fill=REMOVED if "missing" in result else INK))

    panel(30, "Before", ("w1", "w2", "w3"), "y = w1 x1 + w2 x2 + w3 x3", False)
    panel(320, "Cut", ("w1", "", "w3"), "w2 x2 is missing", True)
    panel(610, "Recovered", ("w1 + a w2", "", "w3 + b w2"), "y is nearly what it was", True)
    shapes.append(f'<path d="M30 284H830" stroke="{FAINT}"/>')
    shapes.append(
        text(
            30,
            310,
            "On the images, x2 is nearly a x1 + b x3. Least squares finds the new weights; it needs no labels.",
        )
    )
    shapes.append(text(30, 334, "No layer and no parameter is added. Nothing is trained."))
    return sheet(860, 354, "The kept channels take over the work of a removed channel", shapes)


PICTURES = {"coupling.svg": coupling, "cut.svg": surgery, "compensation.svg": compensation}
