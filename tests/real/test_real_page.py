"""The status page in a real Chromium: live during a swap, by keyboard, with keys, and hostile names are text."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from real_kit import RealRouter, Start, chat, demo_engine

pytestmark = pytest.mark.real
HOSTILE = "<img src=x onerror=document.title='owned'>"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
# Written when this is set: the pictures of the documentation.
PICTURES = os.environ.get("ENGINEROUTER_PICTURES")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("ENGINEROUTER_NEED_CHROMIUM") == "1":
            pytest.fail("no chromium here")
        pytest.skip("no chromium here (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must neither log an error nor load anything from elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    yield opened
    context.close()
    # The browser's own words for a key that is refused, and for a router that is away for a moment.
    expected = ("401", "403", "ERR_CONNECTION_REFUSED")
    assert [p for p in problems if not any(words in p for words in expected)] == []


def engines(*names: str, load_s: float = 0.2) -> dict[str, Any]:
    return {n: {"type": "generic_process", "start_cmd": demo_engine(n, load_s=load_s, memory_mib=64)} for n in names}


def open_page(page: Any, router: RealRouter) -> Any:
    page.goto(router.url + "/")
    page.wait_for_selector("#connection.live")
    return page


def press(page: Any, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


def test_a_swap_is_seen_as_it_happens_and_its_timeline_stays(start: Start, page: Any) -> None:
    router = start(engines("llama", "qwen", load_s=1.0))
    open_page(page, router)
    press(page, "Load llama")
    page.wait_for_selector('#engines > li.starting[data-key="llama"]')
    page.wait_for_selector("#banner:has-text('Swap to llama')")
    page.wait_for_selector('#engines > li.ready[data-key="llama"]')
    press(page, "Load qwen")
    page.wait_for_selector('#engines > li.ready[data-key="qwen"]')
    page.wait_for_selector('#engines > li.cold[data-key="llama"]')
    assert "qwen in place of llama" in page.locator("#swaps li").first.inner_text()
    assert page.locator("#swaps li").first.locator(".bar span").count() >= 3
    press(page, "Unload qwen")
    page.wait_for_selector('#engines > li.cold[data-key="qwen"]')
    assert re.fullmatch(r"[\d.]+ GiB", page.locator("#memory-now").inner_text())
    assert page.locator("#memory path.curve").count() == 1


def test_memory_before_the_page_was_opened_is_drawn_with_the_swaps_marked(start: Start, page: Any) -> None:
    router = start(engines("llama", "qwen"))
    router.ask("llama")
    router.status()  # somebody reads memory, and nobody watches
    page.wait_for_timeout(6000)
    router.ask("qwen")
    router.status()
    open_page(page, router)
    page.wait_for_selector("#memory path.mark:nth-of-type(3)", state="attached")
    seen = page.locator("#memory-span").inner_text()
    shown_s = re.search(r"the last ([\d.]+) s", seen)
    assert shown_s is not None, seen
    assert float(shown_s[1]) >= 5
    assert page.locator("#memory path.curve").get_attribute("d").count("L") >= 2


def test_where_nobody_has_read_memory_there_is_a_gap_whatever_the_clocks_say(start: Start, page: Any) -> None:
    """The router's clock is years behind."""
    router = start(engines("llama"))
    points = [[seconds, 2**30] for seconds in (0.0, 5.0, 10.0, 1800.0, 1805.0)]
    swapped = {"target": "llama", "at": 8.0, "result": "ok", "total_s": 1.0, "seconds": {"starting": 1.0}, "freed": []}
    told = {"status": router.status(), "memory_history": {"at": 1805.0, "points": points}, "swap": swapped}
    body = "".join(
        f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in (*told.items(), ("status", told["status"]))
    )
    page.route("**/events", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.goto(router.url + "/")
    page.wait_for_selector("#memory path.mark", state="attached")
    assert page.locator("#memory path.curve").get_attribute("d").count("M") == 2
    assert page.locator("#memory path.mark").get_attribute("d").startswith("M2.7,")
    assert "the last 30 min 5 s" in page.locator("#memory-span").inner_text()


def test_requests_appear_and_are_still_there_after_a_reload_of_the_page(start: Start, page: Any) -> None:
    router = start(engines("llama"))
    open_page(page, router)
    router.ask("llama")
    row = page.locator("#requests tr").first
    row.wait_for()
    cells = row.locator("td").all_inner_texts()
    assert cells[1:4] == ["llama", "llama/llama", "200"]
    page.reload()
    page.wait_for_selector("#requests tr")


def test_a_provider_that_is_passed_over_is_not_green_and_cannot_be_unloaded(start: Start, page: Any) -> None:
    """Nothing listens where it should be."""
    cloud = {"type": "remote", "base_url": "http://127.0.0.1:9/v1", "api_key": "k", "served_models": ["big"]}
    router = start(engines("llama") | {"cloud": cloud}, aliases={"best": {"chain": ["big", "llama"]}})
    open_page(page, router)
    for _ in range(3):
        router.ask("best")
    page.wait_for_selector('#engines > li.unhealthy[data-key="cloud"]')
    assert "nothing of it is served" in page.locator('#engines > li[data-key="cloud"]').inner_text()
    assert page.get_by_role("button", name="Unload cloud", exact=True).is_disabled()


def test_all_can_be_done_by_keyboard_and_the_focus_stays(start: Start, page: Any) -> None:
    router = start(engines("llama"))
    open_page(page, router)
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Load llama":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector('#engines > li.ready[data-key="llama"]')
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Unload llama"


def test_a_hostile_model_name_is_text(start: Start, page: Any) -> None:
    router = start(engines("llama"), models=[{"id": HOSTILE, "engine": "llama", "upstream_id": "llama"}])
    open_page(page, router)
    router.ask(HOSTILE)
    assert router.post("/v1/chat/completions", {"model": "<script>document.title='owned'</script>"}).status == 404
    page.wait_for_selector("#requests tr:nth-child(2)")
    assert HOSTILE in page.locator("#engines").inner_text()
    assert HOSTILE in page.locator("#requests").inner_text()
    assert page.locator("main img").count() == 0
    assert page.locator("main script").count() == 0
    assert page.title() == "enginerouter"


def test_with_keys_it_asks_for_one_and_a_wrong_one_is_asked_again(start: Start, page: Any) -> None:
    keys = [{"name": "boss", "key": "s3cret", "admin": True}, {"name": "guest", "key": "guest", "models": ["llama"]}]
    router = start(engines("llama", "qwen"), api_keys=keys)
    page.goto(router.url + "/")
    for key in ("wrong", "guest"):
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", key)
        page.keyboard.press("Enter")
    page.wait_for_selector("#connection.live")
    page.wait_for_selector("#engines > li")
    assert page.locator("#engines > li").count() == 1, "a key sees what it may use"
    press(page, "Load llama")
    page.wait_for_selector("#banner.bad:has-text('needs an admin key')")
    press(page, "Other key")
    page.fill("#key", "s3cret")
    page.keyboard.press("Enter")
    page.wait_for_selector('#engines > li[data-key="qwen"]')
    press(page, "Load llama")
    page.wait_for_selector('#engines > li.ready[data-key="llama"]')
    assert "s3cret" not in page.url
    assert page.context.cookies() == []


def test_the_queue_says_whose_requests_wait_for_what(start: Start, page: Any) -> None:
    keys = [{"name": "boss", "key": "s3cret", "admin": True}, {"name": "agents", "key": "many"}]
    router = start(engines("llama", load_s=5.0), api_keys=keys)
    page.goto(router.url + "/")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "s3cret")
    page.keyboard.press("Enter")
    with router.client() as client, ThreadPoolExecutor() as threads:
        client.api_key = "many"
        asked = threads.submit(chat, client, "llama", words=2)
        page.wait_for_selector("#queue:has-text('agents: 1, for ')")
        assert "1 for llama, ready in about" in page.locator("#queue").inner_text()
        page.wait_for_selector("#queue:has-text('Nobody waits.')", timeout=15000)
        asked.result()


def test_it_finds_the_router_again_after_a_restart(start: Start, page: Any) -> None:
    router = start(engines("llama"))
    open_page(page, router)
    router.stop()
    page.wait_for_selector("#connection.lost")
    router.start()
    page.wait_for_selector("#connection.live", timeout=15000)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (768, "light"), (1280, "light")])
def test_it_fits_a_phone_and_a_desktop_dark_and_light(
    start: Start, browser: Any, width: int, scheme: str, tmp_path: Path
) -> None:
    fast = "fast" if width != 768 else "somebody/a-model-with-a-very-long-name-instruct:q4_k_m"
    router = start(
        {
            "llama-70b": {"type": "generic_process", "start_cmd": demo_engine("llama-70b", memory_mib=700, load_s=0.6)},
            "qwen-coder": {"type": "generic_process", "start_cmd": demo_engine("qwen-coder", memory_mib=900, load_s=1)},
            "broken": {"type": "generic_process", "start_cmd": [sys.executable, "-c", "raise SystemExit(3)", "{port}"]},
        },
        aliases={fast: "llama-70b"},
    )
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = open_page(context.new_page(), router)
    for model in ("llama-70b", "qwen-coder", fast, "qwen-coder"):
        with router.client() as client:
            chat(client, model, words=6)
    assert router.post("/v1/chat/completions", {"model": "broken", "messages": []}).status >= 500
    with router.client() as client:
        chat(client, "qwen-coder", words=6)
    page.wait_for_selector("#requests tr:nth-child(6)")
    page.wait_for_timeout(2500)
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow == 0, "nothing sticks out"
    hidden = page.evaluate(
        "[...document.querySelectorAll('#requests td')].filter(td => td.textContent"
        " && td.getBoundingClientRect().right > document.documentElement.clientWidth).length"
    )
    assert hidden == 0, "of a request all is seen"
    assert "start_failed" in page.locator("#requests").inner_text()
    assert "exited with status 3" in page.locator("#swaps .problem").inner_text()
    small = page.evaluate(
        "[...document.querySelectorAll('button')].filter(b => b.offsetHeight && b.offsetHeight < 32).length"
    )
    assert small == 0, "buttons can be hit by a finger"
    folder = Path(PICTURES) if PICTURES and width != 768 else tmp_path
    page.screenshot(path=folder / f"status-page-{width}.png", full_page=True)
    context.close()
