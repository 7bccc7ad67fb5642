"""Whether what the account has is what is wanted, where AWS adds fields of its own."""

from __future__ import annotations

from typing import Any


def holds(found: Any, content: Any) -> bool:
    """Whether all that is wanted is so; AWS adds fields of its own, and returns some numbers as text."""
    if isinstance(content, dict):
        return isinstance(found, dict) and all(holds(found.get(key), value) for key, value in content.items())
    if isinstance(content, list):
        return (
            isinstance(found, list)
            and len(found) == len(content)
            and all(holds(a, b) for a, b in zip(found, content, strict=True))
        )
    return str(found) == str(content)
