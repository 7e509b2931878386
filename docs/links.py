"""Links of the documentation to files outside of docs/, which the built site does not have.

In a clone and on a page of the repository `../lite3r_jax/experiment.py` opens the file; in the site
the path stands there as text.
"""

import re
from typing import Any

_OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Put the path in place of a link that leads out of the site."""
    del context
    return _OUTSIDE.sub(_as_text, markdown)


def _as_text(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"
