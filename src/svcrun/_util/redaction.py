"""Remove passwords and other secrets from texts that are shown to clients."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ("redact",)

HIDDEN: Final = "***"

# The least length of a secret that is looked for by its value: a shorter one would remove words.
_MIN_LENGTH: Final = 4

_REVEALING: Final = (
    r"[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|authorization|cookie|signature"
    r"|(?:api|access|private|secret|auth|account)[_-]?key)[\w.-]*"
)
_NAME: Final = re.compile(_REVEALING, re.IGNORECASE)
# Up to the last @, because a password may contain one.
_URL: Final = re.compile(r"(\b[a-z][\w+.-]*://)[^\s'\"<>]*@", re.IGNORECASE)
_ASSIGNED: Final = re.compile(
    rf"""\b({_REVEALING}["']?\s*(?:=>|[=:])\s*)((?:bearer|basic|digest)\s+)?"""
    r"""("[^"]*"|'[^']*'|[^\s,;&)}\]]+)""",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"://[^\s/]*?:([^\s]*)@")


def redact(text: str, keywords: Mapping[str, Any]) -> str:
    """Return `text` without the secrets that can be recognised: they become ``***``.

    A secret is the user and password of a URL, a value after a name such as ``password=`` or
    ``token:``, the credentials of an Authorization header, and the value of such a keyword.

    :param keywords: the keywords of the service whose error is shown.

    >>> redact("no route to redis://joe:s3cret@db/0", {})
    'no route to redis://***@db/0'
    >>> redact("login failed: password=s3cret user=joe", {})
    'login failed: password=*** user=joe'
    >>> redact("'s3cret' was refused", {"api_key": "s3cret"})
    "'***' was refused"
    """
    for secret in _secrets(keywords):
        text = text.replace(secret, HIDDEN)
    text = _URL.sub(rf"\1{HIDDEN}@", text)
    text = _ASSIGNED.sub(rf"\1{HIDDEN}", text)
    return _SCHEME.sub(rf"\1 {HIDDEN}", text)


def _secrets(keywords: Mapping[str, Any]) -> Iterator[str]:
    """Return the secrets among the values of keywords."""
    for name, value in keywords.items():
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            continue
        if not _NAME.fullmatch(name):
            found = _PASSWORD.search(text)
            text = "" if found is None else found[1]
        if len(text) >= _MIN_LENGTH:
            yield text
