"""Answers in Markdown, for prompts that ask for a table or for code: what a page has to be able to show."""

import re

_TABLE = re.compile(r"\b(in|as) a table\b|\btable of\b", re.IGNORECASE)
_CODE = re.compile(r"\bwrite (me )?(a|an|some)\b.{0,40}\b(function|code|script|program)\b", re.IGNORECASE)

TABLE = """\
Here are three that every library has had at some time:

| algorithm | average | worst | memory | stable |
| :-- | :-- | :-- | --: | :-: |
| merge sort | `n log n` | `n log n` | n | yes |
| quicksort | `n log n` | `n²` | log n | no |
| insertion sort | `n²` | `n²` | 1 | yes |

- **Merge sort** keeps equal items in their order, and pays with memory.
- **Quicksort** is the fastest on average, if its pivot is chosen well.
- **Insertion sort** wins on a few items, and on those that are nearly sorted.

This is the sandbox speaking: it has one table, and shows it to everybody.
"""

CODE = """\
A password is good when it is long and not one of those that everybody tries first.

```python
COMMON = {"password", "12345678", "qwertyuiop"}


def is_good(password: str, least: int = 12) -> bool:
    \"\"\"Long enough, and not among the common ones.\"\"\"
    return len(password) >= least and password.lower() not in COMMON
```

1. `len(password) >= least` asks for length, which helps more than odd signs do.
2. `not in COMMON` turns away what an attacker tries first.

> Check a new password against a list of leaked ones too.

This is the sandbox speaking: it has one program, and writes it for everybody.
"""


def write_markup(prompt: str) -> str:
    """Return the table or the code that the prompt asks for; "" if it asks for neither."""
    asked = prompt[-2_000:]
    if _TABLE.search(asked):
        return TABLE
    return CODE if _CODE.search(asked) else ""
