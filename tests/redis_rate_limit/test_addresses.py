"""Where Redis is, what is wrong with it, and that nobody reads its password anywhere."""

import asyncio
import logging
import pickle
import traceback
from pathlib import Path

import pytest
import trustme

from signalwire_streams import InvalidRequestError, Priority, RateLimit, StreamsClient, StreamsError
from signalwire_streams.redis_rate_limit import RateLimiterError, RedisRateLimiter
from tests.redis_server import RedisServer, free_port

from .conftest import PacerFactory, ServerFactory

SECRET = "s3cret"


def shown(error: BaseException) -> str:
    """Give all that a log or a debugger would show of an error."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(pickle.loads(pickle.dumps(error)))  # noqa: S301


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        f"redis//:{SECRET}@localhost",
        f"redis://:{SECRET}@localhost:port",
        f"redis://:{SECRET}@localhost?max_connections=many",
        f"redis://localhost?password={SECRET}&pasword=typo",
        f"redis://a:{SECRET}:1@[localhost",
    ],
)
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    """An address that can't be right is refused before anything is asked, in a sentence without its password."""
    with pytest.raises(InvalidRequestError, match="write it as 'redis://") as caught:
        RedisRateLimiter(url)

    assert SECRET not in shown(caught.value)


def test_arguments_that_can_not_be_right() -> None:
    """What is wrong is said at once."""
    with pytest.raises(InvalidRequestError, match="url must be a str"):
        RedisRateLimiter(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="fallback_clients"):
        RedisRateLimiter("redis://localhost", fallback_clients=0)
    with pytest.raises(InvalidRequestError, match=r"the Space's host, such as"):
        RedisRateLimiter("redis://localhost", space="https://a b")
    with pytest.raises(InvalidRequestError, match="not both"):
        StreamsClient(
            space="x",
            project="p",
            token="t",
            rate_limiter=RedisRateLimiter("redis://localhost"),
            rate_limit=RateLimit(),
        )


async def test_options_of_the_address(redis: RedisServer) -> None:
    """What redis-py lets an address say counts, and one connection is enough."""
    url = f"{redis.url}?max_connections=1&db=3&socket_timeout=2&client_name=pacer&decode_responses=true"
    async with RedisRateLimiter(url, space="example.signalwire.com") as pacer:
        waits = [pacer.acquire(Priority.BULK, 10) for _ in range(20)] + [
            pacer.wait_until_allowed(10) for _ in range(20)
        ]
        assert await asyncio.gather(*waits) == [0] * 40
        assert b"name=pacer" in redis.ask("CLIENT", "LIST")
        pacer.on_throttled(0.0, 0.0)

    assert "max_connections" not in repr(pacer)


@pytest.mark.parametrize("user", ["", ":wrong-s3cret", "nobody:s3cret"])
async def test_a_wrong_password(redis_server: ServerFactory, caplog: pytest.LogCaptureFixture, user: str) -> None:
    """A Redis that wants another password says so at once, and to all who ask, and nobody sees the wrong one."""
    caplog.set_level(logging.DEBUG)
    redis = redis_server("--requirepass", SECRET)
    url = redis.url.replace("unix://", f"unix://{user}@") if user else redis.url
    pacer = RedisRateLimiter(url, space="example.signalwire.com")

    asked = await asyncio.gather(*(pacer.acquire(Priority.BULK, 10) for _ in range(3)), return_exceptions=True)
    with pytest.raises(RateLimiterError, match="requires a different user or password") as caught:
        await pacer.wait_until_allowed(10)
    with pytest.raises(RateLimiterError, match="requires a different user or password"):
        async with pacer:
            raise AssertionError("it was opened")

    assert [type(error) for error in asked] == [RateLimiterError] * 3
    assert isinstance(caught.value, StreamsError)
    everything = [shown(caught.value), *map(repr, asked), repr(pacer), caplog.text]
    assert not [text for text in everything if SECRET in text]


async def test_the_right_password(redis_server: ServerFactory) -> None:
    """With the right password it works, whatever the characters."""
    redis = redis_server("--requirepass", "p@ss/word?")
    url = redis.url.replace("unix://", "unix://default:p%40ss%2Fword%3F@")
    async with RedisRateLimiter(url, space="example.signalwire.com") as pacer:
        assert await pacer.acquire(Priority.BULK, 10) == 0


async def test_a_user_who_may_not(redis_server: ServerFactory) -> None:
    """A user that lacks a right is told which."""
    redis = redis_server("--user", "weak", "on", ">pw", "~*", "+@all", "-evalsha")
    url = redis.url.replace("unix://", "unix://weak:pw@")
    async with RedisRateLimiter(url, space="example.signalwire.com") as pacer:
        with pytest.raises(RateLimiterError, match="no permissions to run the 'evalsha' command"):
            await pacer.acquire(Priority.BULK, 10)


@pytest.mark.parametrize("value", [("SET", "hello"), ("LPUSH", "x")])
async def test_something_else_is_there(redis: RedisServer, pacer_for: PacerFactory, value: tuple[str, str]) -> None:
    """Keys of these names that hold something else are left alone, and said."""
    redis.ask(value[0], "signalwire-streams:{example.signalwire.com}:state", value[1])

    with pytest.raises(RateLimiterError, match=r"holds something else|wrong kind of value"):
        await pacer_for(redis).acquire(Priority.BULK, 10)


async def test_what_answers_is_no_redis() -> None:
    """A web server where Redis should be is found out."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RateLimiterError, match=f"the server at redis://127.0.0.1:{port} is not a Redis"):
            async with RedisRateLimiter(f"redis://127.0.0.1:{port}"):
                raise AssertionError("it was opened")


async def test_nobody_is_there() -> None:
    """Opening a pacer tells at once where no Redis can be reached."""
    port = free_port()
    with pytest.raises(RateLimiterError, match=f"can't reach the Redis at redis://127.0.0.1:{port}: ") as caught:
        async with RedisRateLimiter(f"redis://:{SECRET}@127.0.0.1:{port}"):
            raise AssertionError("it was opened")

    assert SECRET not in shown(caught.value)


async def test_over_tls(redis_server: ServerFactory, tmp_path: Path) -> None:
    """``rediss://`` is TLS, and a certificate that nobody vouches for is refused."""
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key"))
    authority.cert_pem.write_to_path(str(tmp_path / "authority"))
    files = {"cert-file": "certificate", "key-file": "key", "ca-cert-file": "authority"}
    settings = [word for name, file in files.items() for word in (f"--tls-{name}", str(tmp_path / file))]
    redis_server("--tls-port", str(port), "--tls-auth-clients", "no", *settings)

    async with RedisRateLimiter(f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path / 'authority'}", space="x") as pacer:
        assert await pacer.acquire(Priority.BULK, 10) == 0
    with pytest.raises(RateLimiterError, match=r"can't be used: .*CERTIFICATE_VERIFY_FAILED"):
        async with RedisRateLimiter(f"rediss://127.0.0.1:{port}"):
            raise AssertionError("it was opened")
