"""What the site needs beyond MkDocs: equations without a network, links out of docs/, the API."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")
_MODULES = re.compile(r"^<!-- modules of (\w+) -->$", re.MULTILINE)
_MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown, **_):
    """A file of the repository has no place on the site: its path is named instead."""

    def path(found):
        text, target = found[1], found[2].replace("../", "")
        return f"`{target}`" if text in target else f"{text} (`{target}`)"

    def modules(found):
        package = found[1]
        files = [p for p in (ROOT / package).glob("*.py") if p.stem[0] != "_"]
        inner = [
            p.parent for p in (ROOT / package).glob("*/__init__.py") if p.parent.stem != "bench"
        ]
        return "\n\n".join(
            f"::: {package}.{name}" for name in sorted(p.stem for p in files + inner)
        )

    return _MODULES.sub(modules, _OUTSIDE.sub(path, markdown))


def on_page_content(content, **_):
    """MathML, which browsers draw themselves."""
    return _MATH.sub(
        lambda m: convert(html.unescape(m[2]), display="block" if m[1] == "div" else "inline"),
        content,
    )
