"""URLs of Redis, access errors, and passwords that must not leak."""

import asyncio
import logging
import pickle
import traceback
from pathlib import Path

import pytest
import trustme

from signalwire_streams import InvalidRequestError, Priority, RateLimit, StreamsClient, StreamsError
from signalwire_streams.redis_rate_limit import RateLimiterError, RedisRateLimiter
from tests.ports import free_port
from tests.redis_server import RedisServer

from .conftest import LimiterFactory, ServerFactory

SECRET = "s3cret"


def shown(error: BaseException) -> str:
    """Return everything that a log or a debugger would show of an error."""
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
        f"redis://:{SECRET}@localhost?protocol=4",
        f"redis://localhost?password={SECRET}&pasword=typo",
        f"redis://a:{SECRET}:1@[localhost",
    ],
)
def test_invalid_url_is_rejected_without_its_password(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="write it as 'redis://") as caught:
        RedisRateLimiter(url)

    assert SECRET not in shown(caught.value)


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="url must be a str"):
        RedisRateLimiter(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="fallback_clients"):
        RedisRateLimiter("redis://localhost", fallback_clients=0)
    with pytest.raises(InvalidRequestError, match=r"the Space's host, such as"):
        RedisRateLimiter("redis://localhost", space="https://a b")
    with pytest.raises(InvalidRequestError, match=r"the Space's host, such as"):
        RedisRateLimiter("redis://localhost", space=7)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=r"rate_limit must be a RateLimit, not int: RateLimit\(13_800\)"):
        RedisRateLimiter("redis://localhost", rate_limit=100)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="not both"):
        StreamsClient(
            space="x",
            project="p",
            token="t",
            rate_limiter=RedisRateLimiter("redis://localhost"),
            rate_limit=RateLimit(),
        )


async def test_url_options_of_redis_py_apply(redis: RedisServer) -> None:
    """One connection is enough."""
    url = f"{redis.url}?max_connections=1&db=3&socket_timeout=2&client_name=limiter&decode_responses=true"
    async with RedisRateLimiter(url, space="example.signalwire.com") as limiter:
        waits = [limiter.acquire(Priority.BULK, 10) for _ in range(20)] + [
            limiter.wait_until_allowed(10) for _ in range(20)
        ]
        assert await asyncio.gather(*waits) == [0] * 40
        assert b"name=limiter" in redis.ask("CLIENT", "LIST")
        limiter.on_throttled(0.0, 0.0)

    assert "max_connections" not in repr(limiter)


@pytest.mark.parametrize("user", ["", ":wrong-s3cret", "nobody:s3cret"])
async def test_wrong_password_fails_all_requests_without_leaking(
    redis_server: ServerFactory, caplog: pytest.LogCaptureFixture, user: str
) -> None:
    caplog.set_level(logging.DEBUG)
    redis = redis_server("--requirepass", SECRET)
    url = redis.url.replace("unix://", f"unix://{user}@") if user else redis.url
    limiter = RedisRateLimiter(url, space="example.signalwire.com")

    asked = await asyncio.gather(*(limiter.acquire(Priority.BULK, 10) for _ in range(3)), return_exceptions=True)
    with pytest.raises(RateLimiterError, match="requires a different user or password") as caught:
        await limiter.wait_until_allowed(10)
    with pytest.raises(RateLimiterError, match="requires a different user or password"):
        async with limiter:
            raise AssertionError("it was opened")

    assert [type(error) for error in asked] == [RateLimiterError] * 3
    assert isinstance(caught.value, StreamsError)
    everything = [shown(caught.value), *map(repr, asked), repr(limiter), caplog.text]
    assert not [text for text in everything if SECRET in text]


async def test_password_with_special_characters_works(redis_server: ServerFactory) -> None:
    redis = redis_server("--requirepass", "p@ss/word?")
    url = redis.url.replace("unix://", "unix://default:p%40ss%2Fword%3F@")
    async with RedisRateLimiter(url, space="example.signalwire.com") as limiter:
        assert await limiter.acquire(Priority.BULK, 10) == 0


async def test_redis_user_without_permission_gets_error_naming_the_command(redis_server: ServerFactory) -> None:
    redis = redis_server("--user", "weak", "on", ">pw", "~*", "+@all", "-evalsha")
    url = redis.url.replace("unix://", "unix://weak:pw@")
    async with RedisRateLimiter(url, space="example.signalwire.com") as limiter:
        with pytest.raises(RateLimiterError, match="no permissions to run the 'evalsha' command"):
            await limiter.acquire(Priority.BULK, 10)


@pytest.mark.parametrize("value", [("SET", "hello"), ("LPUSH", "x")])
async def test_foreign_key_fails_requests(
    redis: RedisServer, limiter_for: LimiterFactory, value: tuple[str, str]
) -> None:
    redis.ask(value[0], "signalwire-streams:{example.signalwire.com}:state", value[1])

    with pytest.raises(RateLimiterError, match=r"has other data|wrong kind of value"):
        await limiter_for(redis).acquire(Priority.BULK, 10)


async def test_server_that_is_not_redis_is_detected() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RateLimiterError, match=f"the server at redis://127.0.0.1:{port} is not a Redis server"):
            async with RedisRateLimiter(f"redis://127.0.0.1:{port}"):
                raise AssertionError("it was opened")


async def test_entering_without_redis_raises() -> None:
    port = free_port()
    with pytest.raises(RateLimiterError, match=f"can't reach the Redis at redis://127.0.0.1:{port}: ") as caught:
        async with RedisRateLimiter(f"redis://:{SECRET}@127.0.0.1:{port}"):
            raise AssertionError("it was opened")

    assert SECRET not in shown(caught.value)


async def test_rediss_verifies_certificate(redis_server: ServerFactory, tmp_path: Path) -> None:
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key"))
    authority.cert_pem.write_to_path(str(tmp_path / "authority"))
    files = {"cert-file": "certificate", "key-file": "key", "ca-cert-file": "authority"}
    settings = [word for name, file in files.items() for word in (f"--tls-{name}", str(tmp_path / file))]
    redis_server("--tls-port", str(port), "--tls-auth-clients", "no", *settings)

    async with RedisRateLimiter(
        f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path / 'authority'}", space="x"
    ) as limiter:
        assert await limiter.acquire(Priority.BULK, 10) == 0
    with pytest.raises(RateLimiterError, match=r"can't be used: .*CERTIFICATE_VERIFY_FAILED"):
        async with RedisRateLimiter(f"rediss://127.0.0.1:{port}"):
            raise AssertionError("it was opened")
