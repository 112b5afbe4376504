"""What can be wrong with the Redis that a limit is shared through."""

from attrs import define

from signalwire_streams.errors import StreamsError


@define(eq=False, slots=False, str=False)
class SharedPacerError(StreamsError):
    """The limit can't be shared through this Redis: it refuses the user, is no Redis, or holds something else there.

    Waiting does not help. Nothing was sent, and the message holds no password.
    """


class RedisAwayError(Exception):
    """Redis can't be reached or does not answer in time, which may pass; never raised to a caller of the package."""
