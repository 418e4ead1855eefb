"""Pages: how soon a browser shows something, how much it loads, and how long a long run takes to be drawn.

    make bench-pages WRITE=--write       (puts what it found into docs/pages.md and its Chinese twin)
    PYTHONPATH=tests .venv/bin/python benchmarks/pages.py --times 20 --steps 1000000

Each page is opened in a new context of Chromium, without its cache, over loopback: first paint is the browser's own
"first-contentful-paint", from the start of the navigation. The run has `--steps` rows in metrics.jsonl; its curves are
there when the loss is. The first time the server reads them all, the second time only what was added.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import guides
from browsing import Served, chromium
from machine import cpu_name
from paging import make_run
from playwright.sync_api import Browser, sync_playwright

from danlu.ui.shell import PAGES, static_files
from danlu.ui.site import Site

LIMIT_MS, LIMIT_BYTES = 300, 150_000
HEADS = {
    "en": ("page", "first paint, ms", "slowest of {times}", "loaded, kB"),
    "zh": ("页面", "首次绘制（毫秒）", "{times} 次中最慢", "加载量（kB）"),
}
HOW = {
    "en": "Median of {times} openings without a cache, over loopback; the whole front end has {size:.0f} kB. A run of\n"
    "{steps:,} steps is on the screen after {first:.1f} s the first time, when the server reads {megabytes:.0f} MB of\n"
    "its rows, and after {again:.2f} s from then on; the page holds at most {points:,} points of each curve. {cpu};\n"
    "written by `make bench-pages WRITE=--write`.",
    "zh": "不用缓存、经本机回环打开 {times} 次的中位数；整个前端共 {size:.0f} kB。{steps:,} 步的训练首次打开\n"
    "{first:.1f} 秒后显示（服务端要读取 {megabytes:.0f} MB 记录），此后为 {again:.2f} 秒；\n"
    "页面上每条曲线最多 {points:,} 个点。{cpu}；"
    "由 `make bench-pages WRITE=--write` 写入。",
}


def opened(browser: Browser, url: str, shows: str = "#page > *") -> tuple[float, int, float]:
    """(first paint in ms, bytes that were loaded, seconds until something of the page's own is there)."""
    context = browser.new_context(viewport={"width": 1280, "height": 850})
    page = context.new_page()
    loaded: list[int] = []
    page.on("response", lambda answer: loaded.append(int(answer.headers.get("content-length", 0))))
    started = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_selector(shows, state="attached", timeout=120_000)
    seconds = time.perf_counter() - started
    paint = page.evaluate(
        "() => new Promise(done => { const look = () => { "
        "const found = performance.getEntriesByName('first-contentful-paint')[0]; "
        "if (found) done(found.startTime); else setTimeout(look, 5); }; look(); })"
    )
    context.close()
    return float(paint), sum(loaded), seconds


def long_run(folder: Path, steps: int) -> int:
    """A run of so many steps; the size of its rows."""
    journal = make_run(folder, "long", steps=0, total=steps)
    with journal.metrics_path.open("w") as file:
        for step in range(1, steps + 1):
            loss = 1 + 2 / math.sqrt(step)
            row = {"step": step, "tokens": 900, "loss": loss, "lr": 1e-4, "grad_norm": 1.0, "seconds": 0.5}
            file.write(json.dumps({**row, "memory_bytes": 10**9, "peak_memory_bytes": 2 * 10**9}) + "\n")
    return journal.metrics_path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        runs = Path(folder) / "runs"
        size = long_run(runs, asked.steps)
        make_run(runs, "short", steps=200)
        served = Served(lambda: Site(runs))
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        found: dict[str, list[tuple[float, int, float]]] = {}
        for name in PAGES:
            opened(browser, f"{served.url}/{name}")  # the browser's own first steps
            found[name] = [opened(browser, f"{served.url}/{name}") for _ in range(asked.times)]
            print(name, [round(one[0]) for one in found[name]])
        long = f"{served.url}/runs?run=long"
        first, again = (opened(browser, long, "figure.wide polyline")[2] for _ in range(2))
        browser.close()
        served.end()
    rows = [(name, *figures(times)) for name, times in found.items()]
    whole = sum(len(data) for data, _ in static_files().values())
    values = {
        "times": asked.times, "size": whole / 1000, "steps": asked.steps, "first": first, "again": again,
        "megabytes": size / 1e6, "points": 1000, "cpu": cpu_name(),
    }  # fmt: skip

    def block(language: str) -> str:
        heads = [head.format(times=asked.times) for head in HEADS[language]]
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join(lines) + "\n\n" + HOW[language].format(**values) + "\n"

    print(block("en"))
    if asked.write:
        guides.write(guides.PAGES, "pages", block)
    slowest = max(statistics.median(one[0] for one in times) for times in found.values())
    if slowest > LIMIT_MS or whole > LIMIT_BYTES:
        raise SystemExit(f"over the limits: {slowest:.0f} ms of {LIMIT_MS}, {whole} bytes of {LIMIT_BYTES}")


def figures(times: list[tuple[float, int, float]]) -> tuple[str, str, str]:
    paints = [one[0] for one in times]
    return f"{statistics.median(paints):.0f}", f"{max(paints):.0f}", f"{times[0][1] / 1000:.0f}"


if __name__ == "__main__":
    main()
