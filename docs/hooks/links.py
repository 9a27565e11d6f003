"""Links out of docs/ lead somewhere in the repository only: on the site, the path stands in their place."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called for every page: [text](../file) becomes text (`file`)."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)", r"\1 (`\2`)", markdown)
