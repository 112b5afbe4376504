"""Who may see a page: links, cookies, hosts, origins, and your own function."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from yarl import URL

from signalwire_streams import InvalidRequestError
from signalwire_streams.page import LivePage
from signalwire_streams.page._access import _MAX_COOKIES, _MAX_LINKS, is_loopback
from signalwire_streams.receiver import MediaReceiver

from .conftest import Browse, Browser

FILES = ["", "page.css", "page.js", "charts.js", "sound.js", "worklet.js", "icon.svg"]


async def test_link_is_exchanged_for_a_cookie(link: str, browse: Browse) -> None:
    """The cookie is for this page only, and out of reach of scripts and of other sites."""
    browser = await browse(link)
    assert (await browser.get()).status == 403
    response = await browser.enter()

    assert response.status == 200
    [cookie] = response.cookies.values()
    assert (cookie["httponly"], cookie["samesite"], cookie["secure"]) == (True, "Strict", "")
    assert cookie.value not in link
    assert {(await browser.get(name)).status for name in FILES} == {200}
    assert (await browser.enter()).status == 200  # its cookie counts
    await (await browser.socket()).close()


async def test_pages_on_two_ports_of_a_host_are_both_open_in_one_browser(
    browser: Browser, stack: AsyncExitStack
) -> None:
    """Browsers send a host's cookies to all of its ports, and keep one of each name."""
    link = await stack.enter_async_context(LivePage().serve())
    other = Browser(browser.session, link)
    assert (await other.enter()).status == 200
    assert [(await page.get()).status for page in (browser, other)] == [200, 200]


async def test_link_works_once(link: str, browse: Browse) -> None:
    assert (await (await browse(link)).enter()).status == 200
    response = await (await browse(link)).enter()
    assert (response.status, response.cookies) == (403, {})
    assert "used before" in await response.text()


@pytest.mark.parametrize("method", ["HEAD", "POST", "OPTIONS"])
async def test_only_opening_a_link_uses_it_up(link: str, browse: Browse, method: str) -> None:
    """Programs look at a link before a browser opens it: previews, `curl -I`."""
    browser = await browse(link)
    async with browser.session.request(method, link) as response:
        assert (response.status, response.cookies) == (403, {})
    assert (await browser.enter()).status == 200


@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?other=1"])
async def test_wrong_token_is_rejected(link: str, browse: Browse, query: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of the token is logged."""
    browser = await browse(link)
    with caplog.at_level(logging.INFO, "signalwire_streams.page"):
        response = await browser.get(query)
    assert (response.status, response.cookies) == (403, {})
    assert "rejected a request from 127.0.0.1" in caplog.text
    assert "wrong\n" not in caplog.text.replace("This link is invalid", "")


@pytest.mark.parametrize("path", ["socket", "audio?stream=1", "socket?token={token}"])
async def test_sockets_need_the_cookie(link: str, browse: Browse, path: str) -> None:
    """A link admits no socket, and is not used up by one."""
    browser = await browse(link)
    assert await browser.upgrade(path.format(token=URL(link).query["token"])) == 403
    assert (await browser.enter()).status == 200


async def test_links_and_cookies_are_bounded(page: LivePage, link: str, browse: Browse) -> None:
    """The oldest are forgotten."""
    address = str(URL(link).with_query(None))
    links = [page.create_link(address) for _ in range(_MAX_LINKS)]
    assert (await (await browse(link)).enter()).status == 403
    first = await browse(links[0])
    assert (await first.enter()).status == 200
    for _ in range(_MAX_COOKIES):
        page._access._create_cookie()
    assert (await first.get()).status == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("0.0.0.0", 403),  # noqa: S104
    ],
)
async def test_host_must_be_the_page(browser: Browser, host: str, status: int) -> None:
    """A name that is looked up as 127.0.0.1 (DNS rebinding) shows in the Host header."""
    response = await browser.get(headers={"Host": f"{host}:{browser.address.port}"})
    assert response.status == status


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1", "http://localhost:{port}", "null", ""])
async def test_foreign_origin_is_rejected(browser: Browser, origin: str) -> None:
    """Another site, another port of this machine, and a sandboxed frame; for files and sockets."""
    headers = {"Origin": origin.format(port=browser.address.port)}
    assert (await browser.get(headers=headers)).status == 403
    assert await browser.upgrade(**headers) == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://live.example", 101),
        ("https://live.example:8443", 403),
        ("https://other.example:9443", 101),
        ("https://other.example", 403),
    ],
)
async def test_allowed_host_allows_no_other_port_to_send_requests(
    receiver: MediaReceiver, browse: Browse, stack: AsyncExitStack, origin: str, status: int
) -> None:
    """Browsers send a host's cookies from all of its ports, so another program there could listen to calls."""
    page = LivePage(receivers=[receiver], allowed_hosts=["live.example", "other.example:9443", "127.0.0.1"])
    browser = await browse(await stack.enter_async_context(page.serve()))
    assert (await browser.enter()).status == 200
    if status == 101:
        await (await browser.socket(Origin=origin)).close()
    else:
        assert await browser.upgrade(Origin=origin) == status


async def test_socket_needs_an_origin(browser: Browser) -> None:
    """Every browser sends one with a WebSocket."""
    socket = await browser.socket()
    await socket.close()
    assert await browser.upgrade("socket", Origin="") == 403


@pytest.mark.parametrize("path", ["", "page.js", "missing.js", "socket"])
async def test_every_response_has_the_headers(browser: Browser, path: str) -> None:
    """Nothing is stored, framed, sniffed or loaded from elsewhere, and no address is passed on."""
    headers = (await browser.get(path)).headers
    assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not {"unsafe-inline", "unsafe-eval", "http", "*"} & set(policy.replace(";", " ").replace("'", " ").split())


async def test_files_name_no_other_address(browser: Browser) -> None:
    for name in FILES:
        text = await (await browser.get(name)).text()
        assert "//" not in text.replace("// ", "").replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("missing.js", 404),
        ("../pyproject.toml", 404),
        ("socket", 400),
        ("audio?stream=1", 400),
    ],
)
async def test_other_requests_are_rejected(browser: Browser, path: str, status: int) -> None:
    assert (await browser.get(path, headers={"Origin": browser.origin})).status == status


async def test_only_get_is_allowed(browser: Browser) -> None:
    response = await browser.session.post(browser.address)
    assert (response.status, response.headers["Allow"]) == (405, "GET")


# Elsewhere than on loopback.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])  # noqa: S104  (that is the point)
async def test_other_addresses_need_tls(page: LivePage, host: str) -> None:
    with pytest.raises(InvalidRequestError, match="needs TLS: pass ssl_context"):
        async with page.serve(host=host):
            pass


@pytest.mark.parametrize(
    ("host", "loops"),
    [("localhost", True), ("127.0.0.2", True), ("::1", True), ("0.0.0.0", False), ("localhost.example", False)],  # noqa: S104
)
def test_loopback_is_recognized(host: str, loops: bool) -> None:
    assert is_loopback(host) is loops


async def test_cookie_is_secure_over_tls(page: LivePage, stack: AsyncExitStack, browse: Any) -> None:
    """Any name may be used over TLS, since the certificate of the page fits no other."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    link = await stack.enter_async_context(page.serve(host="0.0.0.0", ssl_context=server))  # noqa: S104
    browser = await browse(link.replace("0.0.0.0", "127.0.0.1"), ssl=trust)  # noqa: S104
    [cookie] = (await browser.enter()).cookies.values()
    assert cookie["secure"] is True
    assert (await browser.get(headers={"Host": f"live.example:{browser.address.port}"})).status == 200
    socket = await browser.socket()
    assert (await socket.receive_json())["all"] is True
    await socket.close()


async def test_serves_ipv6(page: LivePage, stack: AsyncExitStack, browse: Browse) -> None:
    link = await stack.enter_async_context(page.serve(host="::1"))
    assert link.startswith("http://[::1]:")
    assert (await (await browse(link)).enter()).status == 200


# In an application of your own.


@asynccontextmanager
async def embedded(page: LivePage) -> AsyncIterator[str]:
    application = web.Application()
    application.add_subapp("/live/", page.application)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/live/"
    finally:
        await runner.cleanup()


async def test_application_of_your_own_admits_by_links(browse: Browse) -> None:
    """The cookie is for the page's path; browsers get the page under loopback names only, or those you allow."""
    page = LivePage(allowed_hosts=["Live.example", "127.0.0.1"])
    async with embedded(page) as address:
        browser = await browse(page.create_link(address))
        assert (await browser.enter()).status == 200
        assert browser.session.cookie_jar.filter_cookies(browser.address) != {}
        assert browser.session.cookie_jar.filter_cookies(browser.address.origin()) == {}
        assert (await browser.get(headers={"Host": f"live.example:{browser.address.port}"})).status == 200
        assert (await browser.get(headers={"Host": "localhost"})).status == 403
        socket = await browser.socket(Origin="https://live.example")
        assert (await socket.receive_json())["all"] is True
    while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
        pass
    assert message.data == aiohttp.WSCloseCode.GOING_AWAY


@pytest.mark.parametrize("answer", [True, False, "yes", None])
@pytest.mark.parametrize("is_async", [True, False])
async def test_your_function_decides(browse: Browse, answer: Any, is_async: bool) -> None:
    """It is asked for files and sockets, under any name; another site's request does not reach it."""
    asked: list[str] = []

    def authorize(request: web.BaseRequest) -> Any:
        asked.append(request.path)
        return answer

    async def authorize_later(request: web.BaseRequest) -> Any:
        return authorize(request)

    page = LivePage(authorize=authorize_later if is_async else authorize)
    async with embedded(page) as address:
        browser = await browse(address)
        status = 200 if answer is True else 403
        response = await browser.get(headers={"Host": "live.example"})
        assert (response.status, response.cookies, asked) == (status, {}, ["/live/"])
        assert (await browser.get(headers={"Origin": "http://evil.example"})).status == 403
        assert asked == ["/live/"]
        if answer is True:
            await (await browser.socket()).close()
            assert asked[1:] == ["/live/socket"]


async def test_your_function_has_a_time_limit(browse: Browse) -> None:
    async def never(_: web.BaseRequest) -> bool:
        await asyncio.Event().wait()
        return True

    async with LivePage(authorize=never).serve() as link:
        response = await (await browse(link)).get()
    assert (response.status, await response.text()) == (
        403,
        "The check of your access takes too long: try again.\n",
    )


async def test_request_without_a_host_is_rejected(link: str) -> None:
    """As HTTP/1.0 allows."""
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(link).port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"403"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("address", ["http://example.com", "https://example.com/live/", "http://[::1]:80/a/b"])
async def test_link_is_the_address_with_a_token(page: LivePage, address: str) -> None:
    link, _, token = page.create_link(address).partition("?token=")
    assert (link, len(token)) == (address.rstrip("/") + "/", 43)


@pytest.mark.parametrize(
    "address", ["", "example.com", "ftp://a/", "https:///live", "https://a/?x=1", "http://a b/", 5]
)
async def test_link_needs_an_address(page: LivePage, address: Any) -> None:
    with pytest.raises(InvalidRequestError, match="address is not a URL of the page"):
        page.create_link(address)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"host": 5}, "host must be a str"),
        ({"port": 70_000}, "port must"),
        ({"port": "1"}, "port"),
        ({"ssl_context": "cert.pem"}, "ssl_context must be an SSLContext, not str"),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}, "ssl_context is a client's"),
    ],
)
async def test_invalid_address_is_rejected(page: LivePage, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        async with page.serve(**settings):
            pass


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"receivers": ["x"]}, "receivers contains a str: pass MediaReceivers"),
        ({"receivers": None}, "receivers, runs and keepers are lists: write"),
        ({"runs": 5}, "receivers, runs and keepers are lists: write"),
        ({"keepers": "audit"}, "keepers contains a str"),
        ({"allowed_hosts": ["*.example.com"]}, "allowed_hosts is not a list of hosts"),
        ({"runs": ["x"]}, "runs contains a str: pass what client.start_streams returns"),
        ({"receivers": "receiver"}, r"write receivers=\[receiver\]"),
        ({"allowed_hosts": 5}, "allowed_hosts is not a list of hosts"),
        ({"authorize": "x"}, "authorize is a str: write async def authorize"),
        ({"allowed_hosts": "live.example"}, "allowed_hosts is not a list of hosts"),
        ({"allowed_hosts": ["https://live.example"]}, "allowed_hosts is not a list of hosts"),
        ({"max_pages": 0}, "max_pages"),
        ({"max_listeners": True}, "max_listeners"),
    ],
)
async def test_invalid_settings_are_rejected(receiver: MediaReceiver, settings: dict[str, Any], match: str) -> None:
    if settings == {"receivers": "receiver"}:
        settings = {"receivers": receiver}
    with pytest.raises(InvalidRequestError, match=match):
        LivePage(**settings)


@pytest.mark.parametrize("prefix", ["/live", "/live/"])
async def test_address_without_its_last_slash(receiver: MediaReceiver, browse: Browse, prefix: str) -> None:
    page = LivePage(receivers=[receiver])
    application = web.Application()
    application.add_subapp(prefix, page.application)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}/live"
        browser = await browse(page.create_link(address).replace("/?", "?"))
        response = await browser.enter()
        assert (response.status, str(response.url.with_query(None))) == (200, f"{address}/")
    finally:
        await runner.cleanup()


async def test_function_that_returns_no_bool_admits_nobody_and_is_logged(
    receiver: MediaReceiver, browse: Browse, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    async def authorize(_: web.BaseRequest) -> Any:
        return "someone@example.com"

    link = await stack.enter_async_context(LivePage(receivers=[receiver], authorize=authorize).serve())
    assert (await (await browse(link)).enter()).status == 403
    assert "authorize returned a str, which admits nobody: return True or False" in caplog.text
    assert "someone" not in caplog.text


@pytest.mark.parametrize("allowed", ["[2001:DB8::1]", "2001:db8::1", "[2001:db8::1]:8443"])
async def test_addresses_in_brackets_are_hosts(
    receiver: MediaReceiver, browse: Browse, stack: AsyncExitStack, allowed: str
) -> None:
    page = LivePage(receivers=[receiver], allowed_hosts=[allowed])
    browser = await browse(await stack.enter_async_context(page.serve()))
    assert (await browser.get(browser.link, headers={"Host": "[2001:db8::1]:8443"})).status == 200
