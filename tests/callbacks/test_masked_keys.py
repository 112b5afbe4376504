"""No local variable of the package's frames shows a Signing Key, whatever raises: an argument, or the user's code."""

import pprint
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from reprlib import Repr
from typing import Any

import pytest
from multidict import CIMultiDict

import signalwire_streams
from signalwire_streams import InvalidRequestError
from signalwire_streams.callbacks import (
    SIGNATURE_HEADER,
    CallbackEvent,
    CallbackReceiver,
    diagnose_signature,
    sign,
    verify_signature,
)

from .signing import FORM, STARTED, form, form_signature
from .test_receiving import serving

PACKAGE = str(Path(signalwire_streams.__file__).parent)
SECRET = "hush"
KEY = f"PSK_{SECRET}0123456789"


class Broken(Mapping[str, str]):
    """Headers that cannot be read."""

    def __getitem__(self, name: str) -> str:
        raise LookupError(name)

    def __iter__(self) -> Iterator[str]:
        raise ConnectionError

    def __len__(self) -> int:
        return 1


def check_frames(error: BaseException) -> int:
    """Check each frame of the package, also of generated code and of errors behind this one; return their number."""
    count, todo, seen = 0, [error], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
        assert SECRET not in repr(one)
        for frame, _ in traceback.walk_tb(one.__traceback__):
            name = frame.f_code.co_filename
            if not name.startswith(PACKAGE) and "signalwire_streams" not in name.partition("<attrs")[2]:
                continue
            count += 1
            for variable, value in frame.f_locals.items():
                shown = [repr(value), Repr().repr(value), pprint.pformat(value), repr(getattr(value, "__dict__", ""))]
                assert SECRET not in "".join(shown), f"{frame.f_code.co_qualname}: {variable}"
    return count


async def ignore(_: CallbackEvent) -> None:
    pass


def raising() -> Iterator[str]:
    yield KEY
    raise ConnectionError


REQUEST: dict[str, Any] = {
    "url": f"https://u:{SECRET}@e.com/?a={SECRET}",
    "headers": {"Authorization": f"Basic {SECRET}"},
    "body": b"",
    "keys": [KEY],
}
RECEIVER: dict[str, Any] = {"handler": ignore, "keys": [KEY], "public_url": f"https://u:{SECRET}@e.com/"}
WRONG_REQUESTS: dict[str, dict[str, Any]] = {
    "body": {"body": "x"},
    "url": {"url": b"x"},
    "headers": {"headers": [("Authorization", f"Basic {SECRET}")]},
    "method": {"method": 5},
    "one key": {"keys": KEY},
    "a key in bytes": {"keys": KEY.encode()},
    "named keys": {"keys": {"main": KEY}},
    "keys of bytes beside a wrong body": {"keys": [KEY.encode(), [KEY]], "body": "x"},
    "keys of another type": {"keys": type("Keys", (), {"__repr__": lambda _: KEY})()},
    "a generator of keys": {"keys": (key for key in [KEY]), "body": "x"},
    "headers that raise": {"headers": Broken()},
}
WRONG_RECEIVERS: dict[str, dict[str, Any]] = {
    "public_url": {"public_url": "nope"},
    "a query in public_url": {"public_url": f"https://u:{SECRET}@e.com/?a={SECRET}"},
    "one key": {"keys": KEY},
    "no key": {"keys": [KEY.encode()]},
    "handler": {"handler": None},
    "allowed_hosts": {"allowed_hosts": ["e.com"]},
    "body_limit": {"body_limit": 0},
    "a large body_limit": {"body_limit": 2**30},
    "body_timeout": {"body_timeout": -1},
    "dedup_size": {"dedup_size": 0},
    "trust_forwarded": {"trust_forwarded": "yes"},
    "another argument": {"memory": 1},
}
WRONG_SIGNINGS: dict[str, dict[str, Any]] = {
    "algorithm": {"algorithm": "md5"},
    "fields and body": {"fields": {}, "body": b""},
    "fields": {"fields": {"a": 1}},
    "url": {"url": b"x"},
    "a url of surrogates": {"url": "\ud800"},
    "body": {"body": "x"},
    "key": {"key": KEY.encode()},
    "a key of surrogates": {"key": f"{KEY}\ud800"},
    "several keys": {"key": [KEY]},
}
FUNCTIONS: list[tuple[Callable[..., object], dict[str, Any], dict[str, dict[str, Any]]]] = [
    (verify_signature, REQUEST, WRONG_REQUESTS),
    (diagnose_signature, REQUEST, {**WRONG_REQUESTS, "candidates": {"candidates": [f"e.com?{SECRET}"]}}),
    (CallbackReceiver, RECEIVER, WRONG_RECEIVERS),
    (sign, {"url": "https://e.com/", "key": KEY}, WRONG_SIGNINGS),
]
CALLS = {
    f"{function.__name__}: {name}": partial(function, **right | changed)
    for function, right, wrong in FUNCTIONS
    for name, changed in wrong.items()
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_rejected_argument_shows_no_key(call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError, ConnectionError)) as caught:
        call()
    check_frames(caught.value)


def test_keys_that_raise_show_no_key() -> None:
    with pytest.raises(ConnectionError) as caught:
        verify_signature(url="https://e.com/", headers={}, keys=raising())  # type: ignore[arg-type]
    assert check_frames(caught.value)


def test_comparison_that_raises_shows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what the platform's credentials for the URL are."""

    def fail(*_: bytes) -> bool:
        raise ConnectionError

    monkeypatch.setattr("hmac.compare_digest", fail)
    headers = CIMultiDict({"Authorization": "Basic dTpodXNo", "Content-Type": FORM, SIGNATURE_HEADER: "x"})
    for function in (verify_signature, diagnose_signature):
        with pytest.raises(ConnectionError) as caught:
            function(**REQUEST | {"headers": headers, "body": form(STARTED)})
        assert check_frames(caught.value) > 3


async def test_request_that_raises_shows_no_key() -> None:
    """As an error tracker shows the frames of a request that fails for a reason of its own."""

    class Request:
        method, raw_path, scheme, host, content_type = "POST", "/callbacks", "http", "e.com", FORM
        content_length = 0
        headers = Broken()

        class content:  # noqa: N801
            @staticmethod
            async def readany() -> bytes:
                return b""

        @staticmethod
        async def read() -> bytes:
            return form(STARTED)

    receiver = CallbackReceiver(**RECEIVER)
    with pytest.raises(ConnectionError) as caught:
        await receiver.handle(Request())  # type: ignore[arg-type]
    assert check_frames(caught.value) > 1
    assert SECRET not in repr(vars(receiver))


@pytest.mark.parametrize("wrong", [KEY, [], [KEY.encode()], KEY.encode(), {"main": KEY}])
def test_wrong_keys_assigned_later_are_rejected_and_not_shown(wrong: Any) -> None:
    """The receiver keeps those it has."""
    receiver = CallbackReceiver(**RECEIVER)
    with pytest.raises(InvalidRequestError, match=r"keys (is empty|must be a list)") as caught:
        receiver.keys = wrong
    assert check_frames(caught.value)
    assert list(receiver.keys) == [KEY]
    receiver.keys = [f"{KEY}2", KEY]
    assert list(receiver.keys) == [f"{KEY}2", KEY]
    assert SECRET not in repr(vars(receiver))


@pytest.mark.usefixtures("idle_clock")
async def test_handler_that_raises_shows_no_key(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(_: CallbackEvent) -> None:
        raise LookupError

    async with serving(handler=handler, keys=[KEY]) as server:
        assert await server.post(X_SignalWire_Signature=form_signature(server.url, STARTED, KEY)) == 204
    [error] = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert error is not None
    assert check_frames(error)
