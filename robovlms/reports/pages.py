"""HTML pages from the templates beside this file: one file each, with nothing to fetch and every value escaped.

Texts of data sets, tasks and recorded results are foreign. Templates escape what they show, and a content security
policy admits our own stylesheet and script alone, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robovlms.reports.palette import css_variables

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, /, *, script: str | None = None, **values: object) -> Path:
    """Write a page and return its path.

    Args:
        path: of the page.
        template: file in `templates/`; it extends `base.html`.
        script: file in `templates/`; the only script that runs on the page.
        values: what the template shows; `title` is one of them.
    """
    style = css_variables() + _read("style.css")
    code = None if script is None else _read(script)
    page = (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            style_hash=content_hash(style),
            script=None if code is None else Markup(code),
            script_hash=None if code is None else content_hash(code),
            **values,
        )
    )
    path.write_text(page, encoding="utf-8")
    return path


def content_hash(text: str) -> str:
    """Return how a content security policy names an inline stylesheet or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def data_uri(path: Path, mime: str) -> str:
    """Return a file as an address that holds it: `data:image/png;base64,...`."""
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment
