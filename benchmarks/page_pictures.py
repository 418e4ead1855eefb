"""The photographs of docs/pages: pages that are served now, in both languages, in few colours.

danlu ui runs --model smollm2-135m --collection people=people.danlu --folders data --start_runs
PYTHONPATH=tests .venv/bin/python benchmarks/page_pictures.py http://127.0.0.1:8090/ui --run quickstart
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from browsing import chromium
from guides import ROOT
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

PICTURES = ROOT / "docs" / "pictures"
COLOURS, WIDTH = 96, 1120
DRAWN = {"do_sample": "true", "temperature": "0.8", "top_k": "20", "top_p": "0.9", "seed": "3"}
BEAMS = {
    "num_beams": "6", "num_beam_groups": "3", "diversity_penalty": "1.5", "num_return_sequences": "3",
    "max_new_tokens": "14", "force_words": "[hills]",
}  # fmt: skip


def shots(run: str) -> dict[str, tuple[str, int, str]]:
    """Name -> (page with its state, height, light or dark)."""
    return {
        "runs": (f"runs?run={run}", 860, "light"),
        "decode": (f"decode?prompt=What is the capital of France?&a={json.dumps(DRAWN)}", 960, "light"),
        "beams": (f"decode?prompt=Tell me about tea.&a={json.dumps(BEAMS)}", 900, "dark"),
        "plan": ("plan?model=Qwen2.5-7B&gpu=24GB&r=16", 760, "light"),
        "recall": ("recall?show=profile&where=age > 60 AND sex = 'F'", 900, "light"),
    }


def photograph(browser: Browser, url: str, place: Path, height: int, scheme: str, language: str) -> None:
    context = browser.new_context(
        viewport={"width": WIDTH, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        locale={"en": "en-GB", "zh": "zh-CN"}[language],
    )
    page: Page = context.new_page()
    page.goto(url)
    page.wait_for_selector("figure, article, .share, .parts")
    page.wait_for_selector("[aria-busy=true]", state="detached")
    page.wait_for_timeout(800)
    taken = Image.open(io.BytesIO(page.screenshot()))
    taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(place, optimize=True)
    context.close()
    print(place.relative_to(ROOT), place.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the pages, with its /ui")
    parser.add_argument("--run", default="quickstart")
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        for name, (path, height, scheme) in shots(asked.run).items():
            for language, ending in (("en", ""), ("zh", ".zh")):
                place = PICTURES / f"pages-{name}{ending}.png"
                photograph(browser, f"{asked.url}/{path}", place, height, scheme, language)
        browser.close()


if __name__ == "__main__":
    main()
