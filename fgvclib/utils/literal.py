"""Values as people type them on a command line."""

import ast
import json
from collections.abc import Iterable
from typing import Any


def literal(text: str) -> Any:
    """The value that a JSON, Python or YAML text stands for. Raises ValueError where it is none of them."""
    import yaml

    # YAML comes last: it takes 1e-3 and None for text. With it, [Baseline] and {epochs: 30} need no quotes.
    for read in (json.loads, ast.literal_eval, yaml.safe_load):
        try:
            return read(text)
        except (ValueError, SyntaxError, yaml.YAMLError):
            continue
    raise ValueError(f"{text!r} is neither JSON nor YAML.")


def settings(items: Iterable[str]) -> dict[str, Any]:
    """`--set KEY=VALUE`, given several times → values by key. Raises ValueError where one is missing or unreadable."""
    for item in items:
        if "=" not in item:
            raise ValueError(f"--set {item} has no value; write --set KEY=VALUE.")
    return {key: literal(text) for key, _, text in (item.partition("=") for item in items)}
