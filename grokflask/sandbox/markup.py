"""Answers in Markdown, for prompts that ask for a table or for code."""

import re

_TABLE = re.compile(r"\b(in|as) a table\b|\btable of\b", re.IGNORECASE)
_CODE = re.compile(r"\bwrite (me )?(a|an|some)\b.{0,40}\b(function|code|script|program)\b", re.IGNORECASE)

TABLE = """\
Here are three sorting algorithms:

| algorithm | average | worst | memory | stable |
| :-- | :-- | :-- | --: | :-: |
| merge sort | `n log n` | `n log n` | n | yes |
| quicksort | `n log n` | `n²` | log n | no |
| insertion sort | `n²` | `n²` | 1 | yes |

- **Merge sort** keeps equal items in order, and needs memory for it.
- **Insertion sort** is best for a few items, or for items that are nearly sorted.

This answer comes from the sandbox, which has only this table.
"""

CODE = """\
A good password is long, and is not one that attackers try first.

```python
COMMON = {"password", "12345678", "qwertyuiop"}


def is_good(password: str, least: int = 12) -> bool:
    \"\"\"Long enough, and not among the common ones.\"\"\"
    return len(password) >= least and password.lower() not in COMMON
```

1. `len(password) >= least` asks for length.
2. `not in COMMON` rejects what attackers try first.

This answer comes from the sandbox, which has only this function.
"""


def write_markup(prompt: str) -> str:
    """Return the table or the code that the prompt asks for, "" if it asks for neither."""
    asked = prompt[-2_000:]
    if _TABLE.search(asked):
        return TABLE
    return CODE if _CODE.search(asked) else ""
