"""Reading a page as a reader that trusts nobody does: what the tests of the pages share."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from asvp_export.report.render import MOST_BYTES


class Page(HTMLParser):
    """The elements and texts of a page that is well-formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> str:
        return " ".join(" ".join(self.texts.get(tag, [])).split())


def read(text: str) -> Page:
    """The page's parts; whatever is in it, it is well-formed, small, and reaches out to nothing."""
    assert text.lstrip().startswith("<!doctype html>") and len(text.encode()) < MOST_BYTES
    page = Page(text)
    assert not page._open, "elements stay open"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base", "form", "use", "image")
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "style", "action")]
        assert str(attributes.get("src", "data:")).startswith("data:image/webp;base64,") or "src" not in attributes
        for reference in ("href", "aria-labelledby"):
            assert attributes.get(reference, ids[0] if ids else "").lstrip("#") in ids
    assert not re.search(r"url\(|@import|https?:", "".join(page.texts["style"] + page.texts.get("script", [])))
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(attributes["aria-label"] for attributes in page.all("svg"))
    policy = next(str(attributes["content"]) for attributes in page.all("meta") if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    return page


def pixels(source: str | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(str(source).partition(",")[2]))))
