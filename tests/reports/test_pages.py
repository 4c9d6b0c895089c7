import json
import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from robovlms.reports.pages import TEMPLATES, content_hash, write_page
from robovlms.reports.palette import css_variables

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&\u2028"
PAGES = sorted(path.name for path in TEMPLATES.glob("*.html") if "extends" in path.read_text(encoding="utf-8"))


class Elements(HTMLParser):
    """Collects the text of styles and scripts, and the policy."""

    def __init__(self, text):
        super().__init__()
        self.found, self.policy, self.inside = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, ""])
        self.inside = True
        attributes = dict(attrs)
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_data(self, data):
        if self.inside:
            self.found[-1][1] += data

    def handle_endtag(self, tag):
        self.inside = False

    def texts(self, tag):
        return [text for name, text in self.found if name == tag]


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A page of one value, beside the real templates."""
    from robovlms.reports import pages

    folder = tmp_path / "templates"
    folder.mkdir()
    for path in TEMPLATES.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    text = '{% extends "base.html" %}{% block body %}<p>{{ value }}</p><script id="data" type="application/json">'
    (folder / "value.html").write_text(text + "{{ value | tojson }}</script>{% endblock %}")
    (folder / "one.js").write_text("let a = 1 < 2 && 3;")
    monkeypatch.setattr(pages, "TEMPLATES", folder)
    pages._environment.cache_clear()
    yield "value.html"
    pages._environment.cache_clear()


def test_the_policy_admits_our_style_and_script_and_nothing_else(tmp_path, template):
    page = Elements(write_page(tmp_path / "a.html", template, script="one.js", title="t", value="v").read_text())
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["style-src"] == f"'{content_hash(page.texts('style')[0])}'"
    assert rules["script-src"] == f"'{content_hash(page.texts('script')[1])}'"
    assert page.texts("script")[1] == "let a = 1 < 2 && 3;"
    assert {rules["img-src"], rules["media-src"]} == {"data:"}


def test_a_page_without_a_script_admits_none(tmp_path, template):
    page = write_page(tmp_path / "a.html", template, title="t", value="v").read_text()
    assert "script-src 'none'" in page


def test_foreign_texts_stay_texts_in_html_and_in_embedded_json(tmp_path, template):
    text = write_page(tmp_path / "a.html", template, title=EVIL, value=EVIL).read_text(encoding="utf-8")
    page = Elements(text)
    assert [name for name, _ in page.found].count("script") == 1
    assert "img" not in [name for name, _ in page.found]
    embedded = re.search(r'application/json">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&\u2028") & set(embedded)
    assert json.loads(embedded) == EVIL


def test_a_value_that_a_template_needs_and_nobody_gives_is_an_error(tmp_path, template):
    with pytest.raises(UndefinedError, match="value"):
        write_page(tmp_path / "a.html", template, title="t")


@pytest.mark.parametrize("name", PAGES)
def test_no_template_turns_escaping_off_or_fetches_anything(name):
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape|https?:| style=| on\w+=", text)


def test_the_stylesheet_has_no_colours_beside_the_palette():
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    assert not re.search(r"#[0-9a-f]{3,6}\b(?![^{]*\{)", style.replace("#clock", ""))
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    assert used <= set(re.findall(r"(--[\w-]+):", css_variables()))
