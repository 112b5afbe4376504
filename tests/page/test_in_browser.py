"""The page in Chromium, with streams of a simulated Space; run by the nox session ``browser``."""

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from signalwire_streams import Codec, ConferenceStream, StreamsClient
from signalwire_streams.page import LivePage
from signalwire_streams.receiver import MediaReceiver
from signalwire_streams.simulator import Certificates, SimulatedSpace, Tone
from tests.waiting import until

from .conftest import Handler, tone

playwright = pytest.importorskip("playwright.async_api", reason="the nox session `browser` installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

pytestmark = pytest.mark.timeout(120)

HERTZ = 500
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
KEEP_ANALYSERS = """
const create = AudioContext.prototype.createAnalyser;
AudioContext.prototype.createAnalyser = function () { return (window.heard = create.call(this)); };
"""
LOUDEST = """() => {
  const bins = new Float32Array(window.heard.frequencyBinCount);
  window.heard.getFloatFrequencyData(bins);
  const at = bins.indexOf(Math.max(...bins));
  return [at * window.heard.context.sampleRate / window.heard.fftSize, bins[at]];
}"""


class Window:
    """A page in Chromium, and what went wrong in it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda _: self.errors.append("a dialog opened"))

    async def text(self, selector: str) -> str:
        found: str = await self.page.locator(selector).inner_text()
        return found

    async def shows(self, selector: str, text: str) -> None:
        await playwright.expect(self.page.locator(selector)).to_contain_text(text, timeout=30_000)

    async def counts(self, selector: str, number: int) -> None:
        await playwright.expect(self.page.locator(selector)).to_have_count(number, timeout=30_000)

    async def names(self) -> list[str]:
        return [text async for text in _each(self.page.locator("#rows tr:not([hidden]) td.name"))]


async def _each(found: Any) -> AsyncIterator[str]:
    for text in await found.all_inner_texts():
        yield text


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """As elsewhere, but in real time: the browser is another process."""
    async with AsyncExitStack() as entered:
        yield entered


@pytest.fixture
async def chromium(stack: AsyncExitStack) -> Any:
    started = await stack.enter_async_context(playwright.async_playwright())
    browser = await started.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
    stack.push_async_callback(browser.close)
    return browser


@pytest.fixture
async def window(chromium: Any, link: str) -> Window:
    """The page of `receiver`, at 1,400 pixels."""
    return await open_window(chromium, link)


async def open_window(chromium: Any, link: str, **options: Any) -> Window:
    context = await chromium.new_context(**({"viewport": {"width": 1400, "height": 800}} | options))
    await context.add_init_script(KEEP_ANALYSERS)
    window = Window(await context.new_page())
    await window.page.goto(link)
    await window.shows("#connection", "Connected")
    return window


class Conversations:
    """Streams of a simulated Space that speaks a tone."""

    def __init__(self, client: StreamsClient, space: SimulatedSpace, url: str) -> None:
        self.client, self.space, self.url = client, space, url
        self.sids = list(space.conference_sids)

    async def start(self, number: int) -> ConferenceStream:
        return await self.client.conferences.start_stream(
            self.sids[number], url=self.url, codec=Codec.L16_16K, parameters={"pin": "secret-1234"}
        )

    async def stop(self, stream: ConferenceStream) -> None:
        await self.client.conferences.stop_stream(stream)


@pytest.fixture
async def conversations(receiver: MediaReceiver, stack: AsyncExitStack) -> Conversations:
    certificates = Certificates.make()
    space = await stack.enter_async_context(
        SimulatedSpace(conferences=3, audio=Tone(hertz=HERTZ), ssl_context=certificates.trust)
    )
    client = await stack.enter_async_context(
        StreamsClient(space=space.base_url, project=space.project, token=space.token)
    )
    return Conversations(
        client, space, await stack.enter_async_context(receiver.serve(ssl_context=certificates.server))
    )


async def test_rows_appear_move_and_go(window: Window, conversations: Conversations) -> None:
    await window.shows("#empty", "No streams yet")
    streams = [await conversations.start(number) for number in range(3)]
    await window.counts("#rows tr", 3)
    await window.shows("#count", "3 streams")
    await window.shows("#rows tr:first-child td.state", "live")
    bar = window.page.locator("#rows .meter i").first
    await until(lambda: _moved(bar), timeout=30, interval=0.1)
    await conversations.stop(streams[0])
    await window.counts("#rows tr.ended", 1)
    await window.counts("#rows tr", 2)
    assert "secret" not in await window.page.content()
    assert window.errors == []


async def _moved(bar: Any) -> bool:
    return await bar.evaluate("bar => bar.style.clipPath") not in {"", "inset(0px 100% 0px 0px)"}


async def test_listening_is_audible(window: Window, conversations: Conversations) -> None:
    """An analyser in the browser hears the tones that the Space speaks; mute and stop silence it."""
    await conversations.start(0)
    await window.page.locator("#rows button").click()
    await window.page.locator("#listen").click()
    await window.shows("#sound", "Listening")

    async def hears_the_tone() -> bool:
        hertz, level = await window.page.evaluate(LOUDEST)
        return bool(level > -60 and min(abs(hertz - HERTZ), abs(hertz - HERTZ * 1.5)) < 20)

    await until(hears_the_tone, timeout=30, interval=0.1)
    await window.page.keyboard.press("m")

    async def hears_nothing() -> bool:
        _, level = await window.page.evaluate(LOUDEST)
        return level is None or level < -100

    await until(hears_nothing, timeout=30, interval=0.1)
    assert await window.page.locator("#mute").get_attribute("aria-pressed") == "true"
    await window.page.keyboard.press("l")
    await window.shows("#listen", "Listen")
    assert window.errors == []


async def test_filter_and_keyboard(window: Window, call: Any) -> None:
    for name in ("alpha-1", "beta-2", "beta-10"):
        await call(name, callSid=f"target-{name}")
    await window.counts("#rows tr", 3)
    press = window.page.keyboard.press
    await press("/")
    await window.page.keyboard.type("BETA")
    await window.shows("#count", "2 of 3 streams")
    await press("Escape")
    await window.shows("#count", "3 streams")
    await window.page.locator("th.name button").click()
    await until(lambda: _equals(window, ["alpha-1", "beta-2", "beta-10"]), timeout=30, interval=0.1)
    await window.page.locator("th.name button").click()
    await until(lambda: _equals(window, ["beta-10", "beta-2", "alpha-1"]), timeout=30, interval=0.1)

    await press("Escape")
    await press("ArrowDown")
    await press("ArrowDown")
    await press("Enter")
    await window.shows("#panel-name", "beta-2")
    await window.shows("#events", "started")
    await press("Escape")
    assert not await window.page.locator("#panel").is_visible()
    assert await window.page.evaluate("document.activeElement.textContent") == "beta-2"
    await press("/")
    await window.page.keyboard.type("gamma")
    await window.shows("#empty", "Nothing matches “gamma”.")
    assert window.errors == []


async def _equals(window: Window, names: list[str]) -> bool:
    return await window.names() == names


async def test_hostile_names_are_text(window: Window, call: Any) -> None:
    names = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", '"onfocus="alert(3)"']
    callers = [await call(name, callSid=name, tracks=[name]) for name in names]
    await window.counts("#rows tr", 3)
    for caller, name in zip(callers, names, strict=True):
        await caller.socket.send_json({"event": "media", "media": {"track": name, "chunk": 1, "payload": "/////w=="}})
    assert sorted(await window.names()) == sorted(names)
    await window.page.locator("#rows button").first.click()
    await window.shows("#statistics", "jitter")
    assert await window.page.locator("img, main script").count() == 0
    assert window.errors == []


async def test_lost_connection_is_said_and_comes_back(
    chromium: Any, receiver: MediaReceiver, call: Any, stack: AsyncExitStack
) -> None:
    page = LivePage(receivers=[receiver], authorize=lambda _: True)
    serving = page.serve()
    link = await serving.__aenter__()
    port = int(link.partition("?")[0].rstrip("/").rpartition(":")[2])
    window = await open_window(chromium, link)
    await call("s-1")
    await window.counts("#rows tr", 1)
    await serving.__aexit__(None, None, None)
    await window.shows("#connection", "Connection lost, trying again")
    await stack.enter_async_context(LivePage(receivers=[receiver], authorize=lambda _: True).serve(port=port))
    await window.shows("#connection", "Connected")
    await window.counts("#rows tr", 1)


async def test_wrong_link_and_other_sites_are_rejected(
    chromium: Any, link: str, window: Window, handler: Handler
) -> None:
    other = await chromium.new_context()
    page = await other.new_page()
    response = await page.goto(link)  # for the second time
    assert response.status == 403
    address = link.partition("?")[0]
    response = await page.goto(address + "?token=wrong")
    assert response.status == 403
    assert "token" not in window.page.url
    foreign = await window.page.context.new_page()  # it has the cookie
    await foreign.goto("about:blank")
    opened = await foreign.evaluate(
        """address => new Promise(resolve => {
          const socket = new WebSocket(address);
          socket.onopen = () => resolve(true);
          socket.onclose = () => resolve(false);
        })""",
        address.replace("http", "ws") + "socket",
    )
    assert opened is False


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_no_serious_fault(chromium: Any, link: str, call: Any, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.async_playwright")
    window = await open_window(
        chromium, link, color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True
    )
    background = await window.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 384) is (scheme == "dark")
    callers = [await call(f"s-{number}") for number in range(5)]
    for caller in callers:
        await caller.send(tone(500), tone(500), skip=3)
    await window.counts("#rows tr", 5)
    for is_opened in (False, True):
        if is_opened:
            await window.page.locator("#rows button").first.click()
            await window.shows("#statistics", "jitter")
        found = (await axe.Axe().run(window.page)).response["violations"]
        serious = [one for one in found if one["impact"] in {"serious", "critical"}]
        assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []
    wide = await window.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width


async def test_run_is_shown(chromium: Any, conversations: Conversations, stack: AsyncExitStack) -> None:
    """With a page that has no receivers: there is no table."""
    page = LivePage(authorize=lambda _: True)
    window = await open_window(chromium, await stack.enter_async_context(page.serve()))
    run = conversations.client.stop_streams([ConferenceStream(sid="none", name=None, conference_sid="CO-none")])
    page.add_run(run, title="<b>Stopping</b>")
    await run.report()
    await window.shows(".run h2", "<b>Stopping</b>")
    await window.shows(".run .head", "1 of 1")
    assert not await window.page.locator("#streams").is_visible()
    assert window.errors == []


@pytest.fixture
async def kept(receiver: MediaReceiver, stack: AsyncExitStack, tmp_path: Path) -> Any:
    """A keeper of three conferences, whose streams are received here; starts on the second are rejected."""
    certificates = Certificates.make()
    space = await stack.enter_async_context(
        SimulatedSpace(conferences=3, audio=Tone(hertz=HERTZ), ssl_context=certificates.trust)
    )
    space.faults.add("status", on="start", status=403, target=space.conference_sids[1])
    client = await stack.enter_async_context(
        StreamsClient(space=space.base_url, project=space.project, token=space.token)
    )
    url = await stack.enter_async_context(receiver.serve(ssl_context=certificates.server))
    keeper = client.keep_streaming(
        {"url": url}, name="<i>audit", receivers=[receiver], poll=0.2, journal=tmp_path / "kept.db"
    )
    return SimpleNamespace(space=space, keeper=await stack.enter_async_context(keeper))


@pytest.mark.parametrize("width", [400, 1400])
async def test_keeper_is_shown(
    chromium: Any, receiver: MediaReceiver, kept: Any, stack: AsyncExitStack, width: int
) -> None:
    """What fails comes first, with its reason; the table is filtered and sorted, and says what holds the keeper up."""
    axe = pytest.importorskip("axe_playwright_python.async_playwright")
    page = LivePage(receivers=[receiver], keepers=[kept.keeper], authorize=lambda _: True)
    link = await stack.enter_async_context(page.serve())
    window = await open_window(chromium, link, viewport={"width": width, "height": 800}, bypass_csp=True)
    await window.shows(".keeper h2", "Keeper <i>audit")
    await window.shows(".keeper .count", "3 kept: 1 failing, 2 streaming")
    first = ".keeper tbody tr:first-child"
    sids = kept.space.conference_sids
    await window.shows(f"{first} .name", sids[1])
    await window.shows(f"{first} .reason", "HTTP 403")
    await window.shows(f"{first} .age", " ago")
    await window.shows("#count", "2 streams")
    await window.shows("#rows tr:first-child .target", sids[0])
    found = (await axe.Axe().run(window.page)).response["violations"]
    assert [one["id"] for one in found if one["impact"] in {"serious", "critical"}] == []
    assert await window.page.evaluate("document.documentElement.scrollWidth") <= width

    await window.page.locator(".keeper th.name button").click()
    await window.shows(f"{first} .name", sids[0])
    await window.page.keyboard.press("/")
    await window.page.keyboard.type("http 403")
    await window.shows(".keeper .count", "1 of 3 kept")
    await window.page.keyboard.press("Escape")
    await window.shows(".keeper .count", "3 kept")

    kept.space.faults.clear()
    await window.shows(".keeper .count", "3 kept: 3 streaming")
    kept.space.end_conference(sids[0])
    await window.counts(".keeper tbody tr", 2)
    kept.space.faults.add("status", on="list", status=401)
    await window.shows(".keeper .notes", "The Space does not answer polls")
    assert window.errors == []
