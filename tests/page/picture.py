"""Takes the README's picture of the live page: ``python -m tests.page.picture FILE``."""

import asyncio
import shutil
import sys

from playwright.async_api import async_playwright, expect

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SETTLED = 20_000  # milliseconds of audio, so that there is a waveform


async def main(file: str) -> None:
    command = ("-m", "signalwire_streams", "demo", "--conferences", "3000", "--page", "--json")
    stderr, stdout = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    demo = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=stdout, stderr=stderr)
    assert demo.stderr is not None
    try:
        link = (await demo.stderr.readline()).decode().split()[-1]
        async with async_playwright() as playwright:
            chromium = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            page = await chromium.new_page(viewport={"width": 1400, "height": 820})
            await page.goto(link)
            await expect(page.locator("#rows tr")).to_have_count(20, timeout=120_000)
            await page.locator("#rows button").nth(2).click()
            await page.wait_for_timeout(SETTLED)
            await page.screenshot(path=file)
            await chromium.close()
    finally:
        demo.terminate()
        await demo.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
