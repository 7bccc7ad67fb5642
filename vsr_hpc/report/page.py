"""One HTML file from components and data: no network, no inline handlers, nothing unescaped.

Components are plain ES modules, which the live page imports as they are. A file opened from disk cannot
import, so here they are laid one behind the other without their imports and exports. A policy in the page
allows this very script and style by their hashes, pictures inside the page, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from typing import Any

SHARED = ("dom.js", "slider.js", "loops.js", "timeline.js", "charts.js", "sections.js")
"""Components in the order of their imports."""

_IMPORT = re.compile(r"^import\b[^;]*;\n?", re.M)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class|let)\b)", re.M)


def text_of(name: str) -> str:
    """A file of the package's web folder."""
    return resources.files("vsr_hpc.report").joinpath("web").joinpath(name).read_text(encoding="utf-8")


def bundle(names: tuple[str, ...]) -> str:
    """Modules as one script of one scope."""
    parts = [_EXPORT.sub("", _IMPORT.sub("", text_of(name))) for name in names]
    return '"use strict";\n{\n' + "\n".join(parts) + "}\n"


def embedded(data: Any) -> str:
    """JSON that cannot end its script element, nor open anything in it, whatever its texts say."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(title: str, modules: tuple[str, ...], data: Any, summary: str) -> bytes:
    """The page whose last modules these are; `summary` is what is read where no script runs."""
    script, style = bundle((*SHARED, *modules)), text_of("base.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<main id="page"><noscript><p>{html.escape(summary)}</p></noscript></main>\n'
        f'<script type="application/json" id="data">{embedded(data)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    ).encode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
