"""Documentation as a terminal shows it."""

from __future__ import annotations

import re


def flowing(text: str) -> str:
    """Documentation whose lines go on to the end of their paragraph: a terminal breaks them where it is narrow.

    Example:
        >>> long = "one sentence that the source had to break, as it is longer than lines are to be, at some place"
        >>> flowing(long + chr(10) + "of it") == long + " of it"
        True
    """
    lines: list[str] = []
    wide = False  # the source breaks lines at 120 columns
    for line in text.splitlines():
        alone = re.match(r"\s*(>>>|\.\.\.|\w+:|$)", line)
        if wide and not alone:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
        wide = len(line) > 80 and ">>>" not in line
    return "\n".join(lines)
