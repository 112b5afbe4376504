"""The arguments of `StreamsClient.keep_streaming`: their checks, and the keeper that they make."""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, TypedDict

from signalwire_streams.bulk._journal_file import journal_path
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.keep_streaming._journal import KeeperOwner
from signalwire_streams.keep_streaming._keeper import Keeper, KeeperOptions
from signalwire_streams.keep_streaming._receiving import check_receivers
from signalwire_streams.keep_streaming._requests import TargetRequests
from signalwire_streams.keep_streaming._template import Item, Template, request_for
from signalwire_streams.keep_streaming._values import (
    DuplicateNames,
    InDoubtPolicy,
    KeepSettings,
    OnChange,
    OnExit,
    StreamNames,
)
from signalwire_streams.models import TargetKind
from signalwire_streams.models._validation import check_flag, check_path_segment, check_seconds, kind_of, masks_secrets
from signalwire_streams.receiver import MediaReceiver
from signalwire_streams.resources._streams import Streams

_DUPLICATE_NAMES = {TargetKind.CONFERENCE: DuplicateNames.REFUSED, TargetKind.CALL: DuplicateNames.ALLOWED}
_PLACEHOLDER = "target"


class KeepOptions(TypedDict, total=False):
    """Further arguments of `StreamsClient.keep_streaming`.

    Attributes:
        reassert: seconds after which a stream that is not received here is started again, for the Space to refuse it;
            60 by default.
        in_doubt: an `InDoubtPolicy`; ``"hold"`` by default.
        names: a `StreamNames`; ``"reusable"`` by default.
        duplicate_names: a `DuplicateNames` for each kind; by default ``{"conference": "refused", "call": "allowed"}``.
        patience: seconds in which the socket of a stream has to be opened; 10 by default.
        on_change: an `OnChange`; ``"keep"`` by default.
        on_exit: an `OnExit`; ``"leave"`` by default.
    """

    reassert: float
    in_doubt: InDoubtPolicy | str
    names: StreamNames | str
    duplicate_names: Mapping[str, DuplicateNames | str]
    patience: float
    on_change: OnChange | str
    on_exit: OnExit | str


@masks_secrets
def make_keeper(
    template: Template,
    *,
    name: str,
    streams: Mapping[TargetKind, Streams[Any]],
    reads: Mapping[TargetKind, Streams[Any]],
    conferences: bool,
    calls: bool,
    where: Callable[[Item], bool] | None,
    poll: float,
    journal: PathLike[str] | str,
    receivers: Iterable[MediaReceiver],
    options: KeepOptions,
    owner: Callable[[str], KeeperOwner],
    clock: Clock,
) -> Keeper:
    """Check the arguments, and return the keeper that they are for."""
    check_path_segment(name, "name")
    check_seconds(poll, "poll")
    wanted = {
        TargetKind.CONFERENCE: check_flag(conferences, "conferences"),
        TargetKind.CALL: check_flag(calls, "calls"),
    }
    kinds = [kind for kind, is_wanted in wanted.items() if is_wanted]
    if not kinds:
        raise InvalidRequestError("neither conferences nor calls are kept: pass conferences=True or calls=True")
    if where is not None and not callable(where):
        raise InvalidRequestError(f"where is {kind_of(where)}: write a function that returns True or False")
    unknown = sorted(options.keys() - KeepOptions.__annotations__.keys())
    if unknown:
        raise InvalidRequestError(
            f"keep_streaming has no argument {unknown[0]!r}: its options are {', '.join(KeepOptions.__annotations__)}"
        )
    served = check_receivers(receivers)
    if not callable(template):
        for kind in kinds:
            request = request_for(kind, _PLACEHOLDER, template)
            if served and request.authorization_bearer_token is not None:
                raise InvalidRequestError(
                    "each stream gets a token of its own for the receivers: omit authorization_bearer_token"
                )
    return Keeper(
        KeeperOptions(
            name=name,
            template=template,
            where=where,
            poll=poll,
            on_change=OnChange(options.get("on_change", OnChange.KEEP)),
            on_exit=OnExit(options.get("on_exit", OnExit.LEAVE)),
        ),
        {
            kind: TargetRequests(
                kind=kind,
                settings=_settings(kind, options, receives=bool(served)),
                streams=streams[kind],
                reads=reads[kind],
            )
            for kind in kinds
        },
        owner=owner(name),
        journal=journal_path(journal),
        receivers=served,
        clock=clock,
    )


def _settings(kind: TargetKind, options: KeepOptions, *, receives: bool) -> KeepSettings:
    duplicate_names = options.get("duplicate_names", {})
    if not isinstance(duplicate_names, Mapping) or not duplicate_names.keys() <= set(TargetKind):
        raise InvalidRequestError(
            "duplicate_names must say it for each kind: write {'conference': 'refused', 'call': 'allowed'}"
        )
    given = {name: options[name] for name in ("reassert", "in_doubt", "names", "patience") if name in options}
    return KeepSettings(duplicate_names=duplicate_names.get(kind, _DUPLICATE_NAMES[kind]), receives=receives, **given)
