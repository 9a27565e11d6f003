"""Links out of docs/, which read well in the repository, lead there from the site too."""

import re
from typing import Any

OUTWARD = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Called for every page. Without `repo_url` in mkdocs.yml, the linked file's path stands in place of the link."""
    root = config["repo_url"]
    if root:
        return OUTWARD.sub(rf"]({root.rstrip('/')}/blob/main/\1)", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)", r"\1 (`\2`)", markdown)
