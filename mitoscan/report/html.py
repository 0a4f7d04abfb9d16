"""Self-contained HTML pages from the templates beside this module: one file, no network, opens from a disk.

Text from slides and users reaches a page in two ways only: through jinja2's autoescape, or as JSON in a
script element of a type that browsers do not run, escaped so that nothing in it ends that element. A content
security policy with the hashes of our own script and style forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from mitoscan import __version__
from mitoscan.report.colours import COLOURS

_TEMPLATES = Path(__file__).parent / "templates"
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render(
    template: str,
    *,
    scripts: Sequence[str],
    styles: Sequence[str],
    data: dict[str, object],
    context: dict[str, Any],
) -> bytes:
    """Render a page.

    Parameters
    ----------
    template
        File name in ``templates/``.
    scripts, styles
        Files in ``templates/`` that go into the page, one after the other, as one script and one style.
    data
        For the script: element id → what its JSON holds.
    context
        For the template, autoescaped.
    """
    script = _joined(scripts, "(() => {\n'use strict';\n", "})();\n")
    style = _joined(styles, _colours(), "")
    page = _environment().get_template(template)
    text = page.render(
        **context,
        script=Markup(script),  # noqa: S704  (our own file)
        style=Markup(style),  # noqa: S704
        policy=_policy(script, style),
        data={name: _json(value) for name, value in data.items()},
        version=__version__,
    )
    return text.encode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _joined(names: Sequence[str], before: str, after: str) -> str:
    parts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in names]
    return before + "\n".join(parts) + after


def _colours() -> str:
    """Give the colours as CSS variables, ``--amf`` and so on."""
    lines = [f"--{name.lower().replace(' ', '-')}: rgb{colour};" for name, colour in COLOURS.items()]
    return ":root { " + " ".join(lines) + " }\n"


def _json(value: object) -> Markup:
    """Give JSON that cannot leave its script element; ASCII, so that any text can be encoded."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))  # noqa: S704  (escaped in the line above)


def _policy(script: str, style: str) -> str:
    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; img-src data:; script-src {digest(script)}; style-src {digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
