"""``metrics.jsonl``: one JSON object a line, append-only, cut back to a step on resume."""

import json
from pathlib import Path
from typing import Any

__all__ = ["Journal", "read_journal"]


class Journal:
    """Appends figures of training steps to a file.

    Args:
        path: the file; lines beyond ``step`` (of a run that was killed) are dropped. None keeps
            nothing: of several processes one writes.
        step: the step that training continues from.
    """

    def __init__(self, path: Path | None, *, step: int) -> None:
        self._path = path
        if path is None:
            return
        kept = [line for line in read_journal(path) if line["step"] <= step] if step else []
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)

    def write(self, **figures: Any) -> None:  # noqa: ANN401 - any JSON value
        """Append one line."""
        if self._path is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(figures) + "\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a journal; a line cut by a kill is ignored. Empty where there is none."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
