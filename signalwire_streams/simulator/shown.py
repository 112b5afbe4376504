"""What may be shown of what clients sent: names, and no secret (pure).

Tests read the true values from the Python objects; this is for logs, and for whoever can reach the Space.
"""

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["HIDDEN", "shown_address", "shown_fields", "shown_names"]

HIDDEN: Final = "***"

_ADDRESSES: Final = frozenset({"Url", "StatusCallback", "AnnounceUrl"})
_PLAIN: Final = frozenset(
    {"Name", "Track", "StatusCallbackMethod", "StreamCodec", "StreamRealTime", "Status", "AnnounceMethod"}
)
_PARAMETER_NAME: Final = re.compile(r"Parameter[0-9]+\.Name")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def shown_address(url: str) -> str:
    """Give an address without user, password, query and fragment.

    All up to the last ``@`` is taken for user and password, since one that was not encoded can hold anything.
    """
    before, _, rest = url.rpartition("@")
    scheme = _SCHEME.match(before)
    return (scheme[0] if scheme else "") + re.split(r"[?#]", rest, maxsplit=1)[0]


def shown_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """Give a body's fields: the values of those that hold no secret, addresses as `shown_address`, no others.

    A name that is not known may be a misspelled one of the others, so its value is not shown.
    """
    return {name: _shown(name, value) for name, value in fields.items()}


def shown_names(parameters: Mapping[str, str]) -> dict[str, str]:
    """Give custom parameters' names."""
    return dict.fromkeys(parameters, HIDDEN)


def _shown(name: str, value: str) -> str:
    if name in _ADDRESSES:
        return shown_address(value)
    return value if name in _PLAIN or _PARAMETER_NAME.fullmatch(name) else HIDDEN
