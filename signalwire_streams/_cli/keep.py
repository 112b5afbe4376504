"""The command ``keep``: one stream on each conference or call, until it ends."""

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from types import UnionType
from typing import Any, get_args

import click
from attrs import evolve, fields, frozen

from signalwire_streams import Call, Conference
from signalwire_streams._cli.keep_runner import KeepRunner
from signalwire_streams._cli.listen_options import RecordingSettings, recording_options
from signalwire_streams._cli.options import (
    ENVIRONMENT,
    FIELDS,
    Account,
    Decorator,
    FiniteRange,
    account_options,
    field_option,
    passing,
    reject_conference_options,
    reject_password,
)
from signalwire_streams._cli.output import KEEPING, OUTCOMES, silenced
from signalwire_streams._cli.progress import page_option
from signalwire_streams.keep_streaming import InDoubtPolicy, OnChange, OnExit, StreamNames, StreamTemplate
from signalwire_streams.keep_streaming._template import TARGET
from signalwire_streams.models import TargetKind

_MODELS = {TargetKind.CONFERENCE: Conference, TargetKind.CALL: Call}
_NAMES_OF_KINDS = [f"{kind}={word}" for kind in TargetKind for word in ("refused", "allowed")]
_JOURNAL = "SIGNALWIRE_KEEP_JOURNAL"
_SECONDS = FiniteRange(min=0.1)


@frozen
class Where:
    """The patterns of ``--where``, all of which a conference or call has to match."""

    patterns: Sequence[tuple[str, str]]

    def check(self, kinds: Sequence[TargetKind]) -> None:
        for kind in kinds:
            known = {
                attribute.name.removesuffix("_")
                for attribute in fields(_MODELS[kind])
                if attribute.type is str or (isinstance(attribute.type, UnionType) and str in get_args(attribute.type))
            }
            for name, _ in self.patterns:
                if name not in known:
                    raise click.UsageError(
                        f"--where {name}=...: a {kind} has no field of that name: write one of "
                        f"{', '.join(sorted(known))}{', or keep only one of the two kinds' if len(kinds) > 1 else ''}"
                    )

    def __call__(self, item: Conference | Call) -> bool:
        return all(
            fnmatchcase(str(getattr(item, "from_" if name == "from" else name) or ""), pattern)
            for name, pattern in self.patterns
        )


def _where(_: click.Context, __: click.Parameter, words: Sequence[str]) -> Where:
    pairs = [word.partition("=") for word in words]
    for name, separator, _pattern in pairs:
        if not separator or not name:
            raise click.BadParameter("it has no field or no '=': write it as FIELD=PATTERN, as in friendly_name=a-*")
    return Where([(name, pattern) for name, _, pattern in pairs])


def _duplicate_names(_: click.Context, __: click.Parameter, words: Sequence[str]) -> Mapping[str, str]:
    return dict(word.split("=") for word in words)


def _choice(option: str, default: StrEnum, help_text: str) -> Decorator:
    words = [word.value for word in type(default)]
    return click.option(option, type=click.Choice(words), default=default.value, help=help_text)


def _make_template(**values: Any) -> Mapping[str, Any]:  # noqa: ANN401  (fields of a start, which the library checks)
    return {name: value for name, value in values.items() if value not in (None, {})}


_template_options = passing(
    "template",
    _make_template,
    field_option("url", help="URL of the WebSocket server that receives the audio; no query string."),
    *(field_option(name) for name in FIELDS if name in StreamTemplate.__annotations__ and name != "url"),
)


_ALWAYS = {"health_host", "health_port"}
_RECORDING = [
    str(option.name)
    for option in click.command(recording_options(lambda **_: None)).params
    if option.name not in _ALWAYS
]


def _check_receiving(account: Account, receive: Path | None, url: str | None, recording: RecordingSettings) -> None:
    context = click.get_current_context()
    if receive is None:
        for name in _RECORDING:
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} is for the server that records: add --receive DIR")
    elif url is not None and not recording.port:
        raise click.UsageError("--receive has no --port: name the port of this machine that the --url leads to")
    is_here = receive is not None and recording.certificate is not None and (account.space or "").startswith("http://")
    if url is None and not is_here:
        raise click.UsageError("--url is missing: write the wss:// address that the Space is to connect to")


@click.command(
    short_help="Keep one stream on every live conference or call.",
    epilog=f"""{ENVIRONMENT}  {_JOURNAL}  the journal, instead of --journal

\b
Examples:
  signalwire-streams keep --name audit --url wss://audio.example.com/live
  signalwire-streams keep --name audit --url wss://audio.example.com/live \\
      --where 'friendly_name=support-*' --journal support.db
  signalwire-streams keep --name audit --url wss://rx.example.com:8443/ \\
      --receive recordings --host 0.0.0.0 --port 8443 \\
      --cert fullchain.pem --key privkey.pem

\b
On this machine, with a simulated Space:
  python -m trustme
  signalwire-streams simulate --audio tone --ca-file client.pem
  signalwire-streams keep --name audit --receive recordings \\
      --cert server.pem --key server.key
""",
)
@field_option(
    "name", required=True, help="First part of the streams' names, which end with the sid of the conference or call."
)
@_template_options
@click.option("--conferences/--no-conferences", default=True, help="Keep conferences.")
@click.option("--calls", is_flag=True, help="Also keep calls, including those of conference participants.")
@click.option(
    "--where",
    multiple=True,
    callback=_where,
    metavar="FIELD=PATTERN",
    help="Only targets whose field matches, as in 'friendly_name=support-*'; repeatable: all must match.",
)
@click.option(
    "--journal",
    metavar="FILE|URL",
    help="Where running streams are recorded; kept.db by default. The URL of a Redis lets keepers on several hosts "
    f"share it: one active, the others on standby; pass one with a password in {_JOURNAL}.",
)
@click.option(
    "--lease",
    type=FiniteRange(min=1),
    default=30.0,
    metavar="SECONDS",
    help="Seconds until another host takes over; use the same value on all hosts. Redis only.",
)
@click.option("--poll", type=_SECONDS, default=5.0, metavar="SECONDS", help="Seconds between polls.")
@click.option(
    "--reassert",
    type=_SECONDS,
    default=60.0,
    metavar="SECONDS",
    help="Start each running stream again at this interval; the Space rejects the duplicate name if it is still "
    "running. Not with --receive.",
)
@_choice(
    "--in-doubt",
    InDoubtPolicy.HOLD,
    "After a lost response, where the Space would not reject a second stream, as on calls: hold (at most one "
    "stream) or restart (at least one).",
)
@_choice(
    "--names",
    StreamNames.REUSABLE,
    "Whether the Space accepts the name of a stream that has ended, which is not documented.",
)
@click.option(
    "--duplicate-names",
    multiple=True,
    type=click.Choice(_NAMES_OF_KINDS),
    callback=_duplicate_names,
    metavar="KIND=WORD",
    help="Whether the Space refuses a name that is in use. By default conference=refused, which is documented, and "
    "call=allowed.",
)
@_choice(
    "--on-change",
    OnChange.KEEP,
    "Existing streams that were started with different options: keep them, or replace them.",
)
@_choice("--on-exit", OnExit.LEAVE, "At the end, leave the streams running, or stop them.")
@click.option(
    "--receive",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Receive the streams here, and record each in a WAV file in DIR, as 'listen' does.",
)
@recording_options
@page_option
@account_options
def keep(
    account: Account,
    *,
    template: Mapping[str, Any],
    conferences: bool,
    calls: bool,
    where: Where,
    journal: str | None,
    receive: Path | None,
    recording: RecordingSettings,
    **options: Any,  # noqa: ANN401  (arguments of keep_streaming, and the page's port)
) -> None:
    """Keep one stream on every live conference, or call, until it ends.

    It starts a stream when a conference or call begins, and a new one whenever it is lost. Outages are retried. A
    terminal shows a live table, with targets without a stream first; a pipe gets a line per event. The command runs
    until Ctrl-C or SIGTERM, then waits for the starts in flight; a second one aborts them.

    After a kill, a crash or a reboot, the same command resumes from its journal: no conference gets a second stream.
    To stop streams left by an earlier run, run it again with --on-exit stop, and press Ctrl-C.

    With --receive, the streams connect to this process, which accepts no others. They end when it exits, regardless
    of --on-exit. --url must be the public address of --port; for a Space on this machine, such as that of 'simulate',
    it may be omitted. Files are named TARGET-STREAM.wav by the sids of both.

    The exit code is 0 if every target had its stream at the end, none had ended while failing or in doubt, and all
    recordings are complete.
    """
    kinds = [kind for kind, is_kept in ((TargetKind.CONFERENCE, conferences), (TargetKind.CALL, calls)) if is_kept]
    if not kinds:
        raise click.UsageError("--no-conferences leaves nothing to keep: add --calls, or omit it")
    if calls:
        reject_conference_options({**dict.fromkeys(FIELDS), **template}, "calls")
    where.check(kinds)
    _check_receiving(account, receive, template.get("url"), recording)
    if receive is not None and "authorization_bearer_token" in template:
        raise click.UsageError(
            "with --receive each stream gets its own token: omit --bearer-token-file and --token-key-file"
        )
    # All streams come with a token of the keeper's, so no client uses this one.
    if journal is not None and "://" in journal:
        reject_password(journal, _JOURNAL)
    options["journal"] = os.environ.get(_JOURNAL, "kept.db") if journal is None else journal
    health = recording.health_host, recording.health_port
    recording = evolve(recording, target_parameter=TARGET, health_port=None)  # the keeper drains before its receiver
    prepare = None if receive is None else partial(recording.in_directory, receive, "--receive", (token_urlsafe(),))
    runner = KeepRunner(account, prepare, template=template, kinds=kinds, where=where, health=health, **options)
    with silenced(OUTCOMES, KEEPING):
        account.run(runner.run)
    runner.end()
