"""Jinja2 expressions in pages, with the file and the line of whatever is wrong.

A measured number in prose is an expression over recorded rows. One that cannot be evaluated, or a
claim that no longer holds, is reported with its place, and the page goes on with a dash: a strict
build then fails with all of them listed at once, and a preview still shows the page.
"""

from __future__ import annotations

import functools
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jinja2

from scripts import palette, rows

# a line of tags or claims alone, which would leave an empty line in a table or a paragraph; its
# newline goes into a comment, so that the lines below keep their numbers. What is shown raw stays
_SILENT = re.compile(
    r"(?m)[ \t]*\{% raw %\}[\s\S]*?\{% endraw %\}"
    r"|^[ \t]*(?P<tags>(?:(?:\{%.*?%\}|\{\{ *claim\(.*?\) *\}\})[ \t]*)+)\n"
)


def _tolerant(filter_: Callable) -> Callable:
    """A filter that leaves the dash for an unknown number as it is."""
    return functools.wraps(filter_)(
        lambda value, *args: value if value is rows.UNKNOWN else filter_(value, *args)
    )


class Templates:
    """Renders pages and diagrams.

    Args:
        root: Paths in messages are relative to it.
        report: Called with one message for each thing that is wrong.
    """

    def __init__(self, root: Path, report: Callable[[str], None]):
        self.root, self.report = root, report
        self.environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            # {# opens an anchor in Markdown's attribute lists
            comment_start_string="{##",
            comment_end_string="##}",
        )
        filters = rows.FILTERS | {"provider": palette.provider_name}
        self.environment.filters |= {name: _tolerant(f) for name, f in filters.items()}

    def render(self, text: str, path: Path, context: dict, line: int = 1) -> str:
        """The text with its expressions evaluated; `line` is where it starts in its file."""
        try:
            quiet = _SILENT.sub(lambda m: f"{m['tags']}{{##\n##}}" if m["tags"] else m[0], text)
            code = self.environment.compile(quiet, filename=str(path))
            names = self.environment.make_globals(None)  # range, dict and the like
            template = jinja2.Template.from_code(self.environment, code, names)
            template.text, template.first_line = text, line
            functions = {
                name: self._reporting(value)
                for name, value in context.items()
                if callable(value) and value is not rows.UNKNOWN
            }
            return template.render(context | functions | {"claim": self._claim})
        except jinja2.TemplateSyntaxError as error:
            self._report_at(path, line + error.lineno - 1, error.message)
        except Exception as error:  # whatever an expression raises belongs to its line
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame.lineno for frame in frames if frame.filename == str(path)]
            at = line + own[-1] - 1 if own else line
            ours = isinstance(error, rows.RowError | jinja2.TemplateError)
            message = str(error) if ours else f"{type(error).__name__}: {error}"
            self._report_at(path, at, message)
        return text

    def _report_at(self, path: Path, line: int, message: str) -> None:
        self.report(f"{path.relative_to(self.root)}:{line}: {message}")

    def _report_here(self, message: str) -> None:
        """Reports at the line of the template that is being rendered, with the line's text."""
        frame = sys._getframe(1)
        while "__jinja_template__" not in frame.f_globals:
            frame = frame.f_back
        template = frame.f_globals["__jinja_template__"]
        line = template.get_corresponding_lineno(frame.f_lineno)
        source = template.text.splitlines()[line - 1].strip()
        place = Path(template.filename), template.first_line + line - 1
        self._report_at(*place, f"{message}, in: {source}")

    def _reporting(self, function: Callable) -> Callable:
        """The function, its error reported with the line of the call, a dash in its place."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except rows.RowError as error:
                self._report_here(str(error))
                return rows.UNKNOWN

        return call

    def _claim(self, holds: object) -> str:
        """Renders nothing; reports a claim that the rows do not support."""
        if not holds:
            self._report_here("the recorded rows do not support this claim")
        return ""
