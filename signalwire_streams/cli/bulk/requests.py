"""What is to be started: the lines of a file, or the live ones that the Space lists, with the options for all."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from attrs import define, field, frozen

from signalwire_streams import InvalidRequestError, StartCallStream, StartConferenceStream
from signalwire_streams._cli.bulk.targets import BadLine, Line, Read
from signalwire_streams.cli.wording import for_command_line

Start: TypeAlias = StartConferenceStream | StartCallStream

_ON_CONFERENCES = {"codec", "realtime"}
_NAMING = {"name", "unnamed"}  # a line that says one of them overrules both


@frozen
class Defaults:
    """What the options say of every stream; a line may say otherwise.

    Attributes:
        fields: the fields of a request.
        parameters: the custom parameters; those of a line are added.
    """

    fields: Mapping[str, Any] = field(repr=False)
    parameters: Mapping[str, str] = field(factory=dict, repr=False)

    def request(self, line: Mapping[str, Any]) -> Start:
        """Make the request of one line.

        Raises:
            InvalidRequestError: a field is missing, or can't be right.
        """
        sids = [name for name in ("conference_sid", "call_sid") if name in line]
        if len(sids) != 1:
            raise InvalidRequestError("a line needs a conference_sid or a call_sid, and not both")
        is_call = sids == ["call_sid"]
        left_out = (_ON_CONFERENCES if is_call else set()) | (_NAMING if _NAMING & line.keys() else set())
        given = {name: value for name, value in self.fields.items() if value is not None and name not in left_out}
        own = line.get("parameters", {})
        fields = {**given, **line, "parameters": {**self.parameters, **own} if isinstance(own, dict) else own}
        if "url" not in fields:
            raise InvalidRequestError("there is no url: pass --url, or give the line one")
        return StartCallStream(**fields) if is_call else StartConferenceStream(**fields)


@define(eq=False)
class Requests:
    """The requests of a run, and the lines that are none.

    Attributes:
        good: the requests.
        bad: the lines that are wrong.
    """

    good: list[Start] = field(factory=list)
    bad: list[BadLine] = field(factory=list)

    @classmethod
    def of(cls, lines: Iterable[Read], defaults: Defaults) -> "Requests":
        """Make the requests of lines; each may be there once."""
        requests = cls()
        seen: dict[tuple[str, str | None], int] = {}
        for line in lines:
            if isinstance(line, BadLine):
                requests.bad.append(line)
                continue
            try:
                requests.good.append(_once(defaults.request(line.fields), line, seen))
            except InvalidRequestError as error:
                requests.bad.append(BadLine(line.number, for_command_line(str(error))))
        return requests


def _once(request: Start, line: Line, seen: dict[tuple[str, str | None], int]) -> Start:
    if request.unnamed:
        return request
    first = seen.setdefault((request.target, request.name), line.number)
    if first != line.number:
        raise InvalidRequestError(
            f"{request.target} is on line {first} already: leave it out, or give each of its streams a name of its own"
        )
    return request
