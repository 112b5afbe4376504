"""The arguments of `StreamsClient.keep_streaming`: their checks, and the keeper that they make."""

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from os import PathLike
from typing import Any

from signalwire_streams.bulk._journal_file import journal_path, when_free
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.keep_streaming._journal import KeeperJournal
from signalwire_streams.keep_streaming._keeper import Keeper
from signalwire_streams.keep_streaming._kept_targets import KeeperOptions
from signalwire_streams.keep_streaming._receiving import check_receivers
from signalwire_streams.keep_streaming._records import KeeperOwner, KeeperStore
from signalwire_streams.keep_streaming._settings import (
    DuplicateNames,
    InDoubtPolicy,
    KeepSettings,
    OnChange,
    OnExit,
    StreamNames,
)
from signalwire_streams.keep_streaming._target_requests import TargetRequests
from signalwire_streams.keep_streaming._template import Item, Template, request_for
from signalwire_streams.models import TargetKind
from signalwire_streams.models._validation import check_flag, check_path_segment, check_seconds, kind_of, masks_secrets
from signalwire_streams.receiver import MediaReceiver
from signalwire_streams.resources._streams import Streams

DUPLICATE_NAMES: Mapping[str, str] = {
    TargetKind.CONFERENCE: DuplicateNames.REFUSED,
    TargetKind.CALL: DuplicateNames.ALLOWED,
}
_PLACEHOLDER = "target"
_REDIS = ("redis://", "rediss://", "unix://")


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
    lease: float,
    receivers: Iterable[MediaReceiver],
    reassert: float,
    in_doubt: InDoubtPolicy | str,
    names: StreamNames | str,
    duplicate_names: Mapping[str, DuplicateNames | str],
    on_change: OnChange | str,
    on_exit: OnExit | str,
    owner: Callable[[str, str], KeeperOwner],
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
    if inspect.iscoroutinefunction(where):
        raise InvalidRequestError("where is an async function: write def, or let an async template return None")
    served = check_receivers(receivers)
    if not callable(template):
        for kind in kinds:
            request_for(kind, _PLACEHOLDER, template, is_received=bool(served))
    duplicates = {**DUPLICATE_NAMES, **_of_each_kind(duplicate_names)}
    requests = {}
    for kind in kinds:
        settings = KeepSettings(
            duplicate_names=DuplicateNames(duplicates[kind]),
            names=StreamNames(names),
            in_doubt=InDoubtPolicy(in_doubt),
            receives=bool(served),
            reassert=reassert,
        )
        requests[kind] = TargetRequests(kind=kind, settings=settings, streams=streams[kind], reads=reads[kind])
    options = KeeperOptions(name=name, template=template, where=where, on_change=OnChange(on_change))
    open_journal = _opener(journal, owner(name, StreamNames(names)), check_seconds(lease, "lease"), clock)
    return Keeper(
        options,
        requests,
        open_journal=open_journal,
        receivers=served,
        poll=poll,
        on_exit=OnExit(on_exit),
        clock=clock,
    )


@masks_secrets
def _opener(
    journal: PathLike[str] | str, owner: KeeperOwner, lease: float, clock: Clock
) -> Callable[[], Coroutine[Any, Any, KeeperStore]]:
    if not (isinstance(journal, str) and journal.startswith(_REDIS)):
        path = journal_path(journal)
        return lambda: when_free(clock, partial(KeeperJournal.open, path, owner, clock=clock))
    if not find_spec("redis"):
        raise InvalidRequestError("a journal in Redis needs more packages: pip install 'signalwire-streams[redis]'")
    from signalwire_streams.keep_streaming._redis_journal import RedisJournal  # noqa: PLC0415

    stored = RedisJournal(journal, owner, lease=lease, clock=clock)
    return stored.open


def _of_each_kind(duplicate_names: object) -> Mapping[str, str]:
    if not isinstance(duplicate_names, Mapping) or not duplicate_names.keys() <= set(TargetKind):
        raise InvalidRequestError(
            "duplicate_names says it for each kind: write {'conference': 'refused', 'call': 'allowed'}"
        )
    return duplicate_names
