"""A picture of a data set: episodes from top to bottom, evenly spaced frames from left to right, every view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from robovlms.data.base import Reader
from robovlms.data.splits import evenly_spaced
from robovlms.inspection.scan import Faults, read_pictures
from robovlms.reports.palette import INK, LINE, SOFT

HEIGHT, GAP, MARGIN, CAPTION, LABEL = 112, 4, 20, 26, 64  # px: of a frame, between them, around, of text, left of a row
MAX_WIDTH = 4 * HEIGHT  # of a frame

Frames = dict[int, dict[str, Image.Image]]  # step: view: thumbnail


def draw_contact_sheet(reader: Reader, views: list[str], path: Path, *, episodes: int, frames: int) -> Path:
    """Write a PNG of up to `episodes` episodes, evenly spread, with up to `frames` frames each; grey: cannot be read.

    Captions are the episodes' numbers, lengths and instructions, cut where they are too long.
    """
    filled = [number for number, episode in enumerate(reader.episodes) if episode.length]
    chosen = [filled[i] for i in evenly_spaced(len(filled), min(episodes, len(filled)))]
    rows = [(episode, *_thumbnails(reader, episode, frames)) for episode in chosen]
    shapes = [image.width for _, _, found in rows for images in found.values() for image in images.values()]
    cell = max(shapes, default=HEIGHT) + GAP
    width = 2 * MARGIN + LABEL + cell * frames
    block = CAPTION + len(views) * (HEIGHT + GAP) + MARGIN // 2
    sheet = Image.new("RGB", (width, 2 * MARGIN + block * max(len(rows), 1)), "white")
    draw = ImageDraw.Draw(sheet)
    bold, small = _font("DejaVuSans-Bold.ttf", 14), _font("DejaVuSans.ttf", 11)
    for place, (episode, steps, found) in enumerate(rows):
        top = MARGIN + place * block
        length, instruction, _ = reader.episodes[episode]
        _write(draw, (MARGIN, top + 2), f"#{episode}: {instruction}", bold, width - 2 * MARGIN - 110)
        draw.text((width - MARGIN, top + 4), f"{length} frames", SOFT, small, anchor="ra")
        for row, view in enumerate(views):
            y = top + CAPTION + row * (HEIGHT + GAP)
            _write(draw, (MARGIN, y + HEIGHT // 2 - 7), view, small, LABEL - 6, SOFT)
            for column, step in enumerate(steps):
                x = MARGIN + LABEL + column * cell
                image = found.get(step, {}).get(view)
                if image is None:
                    draw.rectangle((x, y, x + cell - GAP - 1, y + HEIGHT - 1), LINE)
                else:
                    sheet.paste(image, (x, y))
    sheet.save(path)
    return path


def _thumbnails(reader: Reader, episode: int, frames: int) -> tuple[list[int], Frames]:
    length = reader.episodes[episode].length
    steps = np.unique(np.linspace(0, length - 1, min(frames, length)).round().astype(np.int64))
    # One by one: a reader may decode everything between the first and the last of a call.
    found: Frames = {}
    for i in range(len(steps)):
        for step, images in read_pictures(reader, episode, steps[i : i + 1], Faults()):
            found[step] = {view: _thumbnail(image) for view, image in images.items()}
    return steps.tolist(), found


def _thumbnail(image: UInt8[np.ndarray, "_h _x c"]) -> Image.Image:
    width = min(MAX_WIDTH, max(1, round(image.shape[1] * HEIGHT / image.shape[0])))
    return Image.fromarray(image).resize((width, HEIGHT), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl  # here: it has the fonts, and its import takes a while

    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, width: int,
    color: str = INK,
) -> None:  # fmt: skip
    """Write one line, cut to a width."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[:400]).split())
    cut = text
    while cut and draw.textlength(cut if cut == text else f"{cut}…", font) > width:
        cut = cut[:-1]
    draw.text(place, cut if cut == text else f"{cut}…", color, font)
