"""The names of :mod:`typing`, for what a starting program imports.

From Python 3.14 on, asyncio and logging do without that module, which takes as long to import as
all that a small program needs of this package. So where it is not loaded yet, type checkers get its
names and the running program gets stand-ins. They do for annotations, which are never evaluated
here, and for bases and decorators that have a meaning to type checkers only.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING or "typing" in sys.modules:
    from typing import (
        Any as Any,
        ClassVar as ClassVar,
        Final as Final,
        Generic as Generic,
        Literal as Literal,
        NoReturn as NoReturn,
        ParamSpec as ParamSpec,
        Protocol as Protocol,
        Self as Self,
        TextIO as TextIO,
        TypeAlias as TypeAlias,
        TypeVar as TypeVar,
        cast as cast,
        dataclass_transform as dataclass_transform,
        final as final,
        overload as overload,
    )
else:

    class _StandIn:
        __slots__ = ()

        def __class_getitem__(cls, parameters: object) -> type:
            return cls

    def _make(*_: object, **__: object) -> type:
        return _StandIn

    def _return_last(*arguments: object) -> object:
        return arguments[-1]

    def _decorate(**_: object) -> object:
        return _return_last

    Any = ClassVar = Final = Generic = Literal = NoReturn = Protocol = Self = _StandIn
    TextIO = TypeAlias = _StandIn
    ParamSpec = TypeVar = _make
    cast = final = overload = _return_last
    dataclass_transform = _decorate
