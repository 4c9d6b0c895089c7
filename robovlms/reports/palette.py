"""The colours of figures, pictures and pages."""

from __future__ import annotations

INK, SOFT, LINE, PAPER = "#1f2937", "#6b7280", "#e5e7eb", "#ffffff"  # text, second text, rules, background
BLUE, ORANGE, RED, GREEN, AMBER = "#2563a8", "#d9822b", "#b83a3a", "#16804a", "#a15c07"
PALE = {"blue": "#dbe8f6", "orange": "#f6ead9", "red": "#fdf2f2", "amber": "#fdf8ee", "gray": "#fafafa"}  # surfaces


def css_variables() -> str:
    """Return the colours as custom properties of a stylesheet: `--ink`, `--pale-blue`."""
    names = ("ink", "soft", "line", "paper", "blue", "orange", "red", "green", "amber")
    values = (INK, SOFT, LINE, PAPER, BLUE, ORANGE, RED, GREEN, AMBER)
    colours = dict(zip(names, values, strict=True)) | {f"pale-{name}": value for name, value in PALE.items()}
    return f":root {{ color-scheme: light; {' '.join(f'--{name}: {value};' for name, value in colours.items())} }}\n"
