"""Shows the `>>>` examples of docstrings as code: an extension of griffe, which reads the docstrings for the site."""

import re

from griffe import Extension, Object

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.M)


class Doctests(Extension):
    """Put a fence around every example."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Change the docstring of an object before it is parsed."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
