"""What can go wrong with audio.

::

    StreamsError
    ├── UnknownEncodingError    audio whose encoding is not known can't be decoded, placed or recorded
    └── RecordingError          a recording can't be written
        └── RecordingFullError  it is as long as it may be; what was written stays, and is well-formed
"""

from pathlib import Path

from attrs import define

from signalwire_streams.errors import StreamsError


@define(eq=False, slots=False, str=False)
class UnknownEncodingError(StreamsError):
    """The audio is encoded in a way that this package does not know, so it can only be passed on as it came.

    Attributes:
        encoding: what the Space called it.
    """

    encoding: str = ""


@define(eq=False, slots=False, str=False)
class RecordingError(StreamsError):
    """A recording can't be written: the disk is full, the folder is not there, or it was closed.

    Attributes:
        path: the file, where it is one.
    """

    path: Path | None = None


@define(eq=False, slots=False, str=False)
class RecordingFullError(RecordingError):
    """The recording is as long as it may be. Everything before is kept, and the file is well-formed."""
