"""The one kind of error that is the user's to mend."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: the field, what was given, what is accepted.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(value: str, accepted: Iterable[str]) -> str:
    """`value` quoted, the nearest accepted name where one is near, and all accepted names."""
    names = sorted(accepted)
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
    hint = f" (did you mean {by_lower[close[0]]!r}?)" if close else ""
    return f"{value!r}{hint}; accepted: {', '.join(names)}"
