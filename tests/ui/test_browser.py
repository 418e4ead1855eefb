"""The pages in a real browser: every one opened, used and photographed in both languages; what a person sees.

Skipped where playwright or Chromium is missing: `make browser` brings both. DANLU_PICTURES=FOLDER keeps what is seen.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from browsing import Served, chromium
from paging import HOSTILE, add_steps, make_evaluation, make_run

from danlu.journal import claimed
from danlu.recall import BuildOptions, Collection
from danlu.ui.options import PageOptions
from danlu.ui.shell import PAGES
from danlu.ui.site import Site
from danlu.ui.words import dictionary

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: make browser")
expect = sync_api.expect
if chromium() is None:
    pytest.skip("no Chromium: make browser, or DANLU_CHROMIUM=PATH", allow_module_level=True)

CHATS = [
    {"messages": [{"role": "user", "content": f"q {at}"}, {"role": "assistant", "content": f"answer {at}"}]}
    for at in range(7)
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs, an evaluation, a collection and a folder of data."""
    folder = tmp_path_factory.mktemp("place")
    runs = folder / "runs"
    healed = make_run(runs, "healed", steps=60)
    healed.event("rate changed", f"a tenth of the rate {HOSTILE}", by="doctor", step=30, before=1e-3, after=1e-4)
    healed.result("examples", [{"prompt": "p 丹炉", "reference": "r", "before": "b", "after": HOSTILE}])
    make_run(runs, "other", steps=40)
    make_run(runs, "ill", steps=9, total=40, done=False, model={"name": HOSTILE}).event("stopped", f"bad {HOSTILE}")
    make_evaluation(runs / "judged")
    cities, rows = ["北京", "London", HOSTILE], range(90)
    columns = {
        "city": [cities[at % 3] for at in rows],
        "age": [at % 60 for at in rows],
        "bio": [f"tea {at}" for at in rows],
    }
    table = pa.table({"id": list(rows), **columns})
    Collection.build(folder / "people", table, BuildOptions(id="id", text=("bio",)))
    (folder / "data").mkdir()
    (folder / "data" / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    return folder


@pytest.fixture(scope="module")
def served(place, speaker):
    def site():
        options = PageOptions(folders=(str(place / "data"),), start_runs=True)
        return Site(place / "runs", options, speaker, {"people": place / "people"})

    made = Served(site)
    yield made
    made.end()


@pytest.fixture
def see(browser, served):
    """`see(page, language=…)` opens it; at the end nothing was fetched elsewhere, and nothing failed."""
    contexts, faults = [], []

    def own(request):
        if not request.url.startswith((f"http://127.0.0.1:{served.port}/", "data:")):
            faults.append(f"asked {request.url}")

    def open_page(path="runs", language="en"):
        locale = {"en": "en-GB", "zh": "zh-CN"}[language]
        context = browser.new_context(viewport={"width": 1280, "height": 850}, color_scheme="light", locale=locale)
        contexts.append(context)
        page = context.new_page()
        page.on("request", own)
        page.on("pageerror", lambda error: faults.append(f"{path}: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"{path}: a dialog"), dialog.dismiss()))
        page.on("console", lambda said: faults.append(f"{path}: {said.text}") if "Security" in said.text else None)
        page.goto(f"{served.url}/{path}")
        expect(page.locator("#page > *").first).to_be_visible()
        expect(page.locator("[aria-busy=true]")).to_have_count(0)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def photograph(page, name):
    folder = os.environ.get("DANLU_PICTURES")
    taken = page.screenshot(full_page=True, path=Path(folder) / f"{name}.png" if folder else None)
    assert len(taken) > 5000


BEAMS = {"num_beams": "4", "num_beam_groups": "2", "diversity_penalty": "1", "num_return_sequences": "2"}
SHOWN = {
    "runs": "runs?run=healed",
    "decode": "decode?prompt=one%20two",
    "plan": "plan",
    "data": "data?place=0%2Fchats.jsonl",
    "recall": "recall?where=age%20%3E%2030",
    "evaluate": "evaluate",
    "start": "start",
    "list": "runs",
    "beams": "decode?prompt=one&a=" + json.dumps(BEAMS),
}


# What stands out of a phone's window: only tables and trees are moved sideways, inside of their frames.
_TOO_WIDE = """() => [...document.querySelectorAll("body *")]
  .filter((one) => one.getBoundingClientRect().right > 376 && !one.closest(".scroll, nav"))
  .map((one) => one.outerHTML.slice(0, 90))"""


def check_axe(page):
    """Nothing serious for those who do not see, or not well: roles, names, contrast."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: make browser")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response
    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    told = [(one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"]) for one in serious]
    assert told == []
    assert len(found["passes"]) > 10  # it has looked


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", [*PAGES, "list", "beams"])
def test_every_page_in_both_languages_light_and_dark_and_on_a_phone(see, name, language):
    page = see(SHOWN[name], language=language)
    title = dictionary(language)[f"nav.{SHOWN[name].partition('?')[0]}"]
    expect(page.locator("h1")).to_have_text(title)
    expect(page.locator("nav a[aria-current=page]")).to_have_text(title)
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN" if language == "zh" else "en")
    photograph(page, f"{name}-{language}")
    if language == "en":
        check_axe(page)
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        check_axe(page)
    page.set_viewport_size({"width": 375, "height": 800})
    photograph(page, f"{name}-{language}-phone")
    assert page.evaluate(_TOO_WIDE) == []
    page.locator("#language").click()
    other = dictionary("en" if language == "zh" else "zh")
    expect(page.locator("h1")).to_have_text(other[f"nav.{SHOWN[name].partition('?')[0]}"])


# -- runs ----------------------------------------------------------------------------------------------------


def test_the_list_says_how_each_run_stands(see):
    page = see("runs")
    row = page.get_by_role("row", name=re.compile("ill"))
    expect(row).to_contain_text("stopped")
    expect(row).to_contain_text("bad <img")
    assert page.locator("main img").count() == 0
    page.get_by_placeholder("Name, model or kind").fill("heal")
    expect(page.get_by_role("row")).to_have_count(2)


def test_runs_over_each_other(see):
    page = see("runs")
    for name in ("healed", "other"):
        page.get_by_label(f"choose {name}").check()
    page.get_by_role("button", name="Show the chosen").click()
    expect(page).to_have_url(re.compile("run=.*&run="))
    expect(page.locator("figure.wide polyline")).to_have_count(2)
    expect(page.locator("figure.wide .legend")).to_contain_text("healed")


def test_the_doctor_s_events_stand_on_the_curve_with_their_evidence(see):
    page = see("runs?run=healed")
    expect(page.locator("figure.wide .mark.doctor")).to_have_count(1)
    row = page.get_by_role("row", name=re.compile("rate changed"))
    expect(row).to_contain_text("before 0.001")
    expect(row).to_contain_text("after 1e−4")
    expect(page.locator(".example")).to_contain_text(HOSTILE)
    page.locator("figure.wide").get_by_text("as a table").click()
    expect(page.locator("figure.wide tbody tr")).to_have_count(60)
    page.locator("figure.wide svg").hover()
    expect(page.locator("figure.wide .reading")).to_contain_text(re.compile(r"step \d+"))


def test_a_run_goes_on_before_the_reader_s_eyes_and_over_a_restart(see, served, place):
    journal = make_run(place / "runs", "live", steps=5, total=40, done=False)
    with claimed(journal.directory, lambda _: None):
        page = see("runs?run=live")
        head = page.locator(".run-head")
        expect(head).to_contain_text("step 5 of 40")
        expect(head).to_contain_text("left")
        page.evaluate("document.body.dataset.same = 'yes'")
        add_steps(journal, 6, 9)
        expect(head).to_contain_text("step 9 of 40")
        served.end()
        expect(page.get_by_text("The server does not answer.")).to_be_visible()
        add_steps(journal, 10, 12)
        served.begin()
        expect(head).to_contain_text("step 12 of 40", timeout=15_000)
        expect(page.get_by_text("The server does not answer.")).to_be_hidden()
        assert page.evaluate("document.body.dataset.same") == "yes"  # the same page: nobody has loaded it anew
        points = page.locator("figure.wide polyline").first.get_attribute("points")
        assert len(points.split()) == 12
        journal.result("run", {"seconds": 3})
        journal.result("examples", [{"prompt": "new", "reference": "", "before": "", "after": "fresh"}])
    expect(head).to_contain_text("done")
    expect(page.get_by_text("fresh")).to_be_visible()
    again = see("runs?run=live")
    expect(again.locator(".run-head")).to_contain_text("step 12 of 40")


def test_many_tabs_of_finished_runs_do_not_hold_each_other_up(browser, served):
    context = browser.new_context()
    try:
        for _ in range(8):
            page = context.new_page()
            page.goto(f"{served.url}/runs?run=healed")
            expect(page.locator("figure.wide polyline").first).to_be_visible()
    finally:
        context.close()


# -- decode --------------------------------------------------------------------------------------------------


def test_a_prompt_is_answered_and_another_candidate_is_taken(see):
    page = see("decode")
    page.locator("#prompt").fill("the quick brown")
    page.get_by_role("button", name="Answer").click()
    tokens = page.locator(".tokens button")
    expect(tokens).to_have_count(24)
    tokens.nth(2).click()
    expect(tokens.nth(2)).to_have_attribute("aria-pressed", "true")
    before = [tokens.nth(at).inner_text() for at in range(2)]
    other = page.locator(".candidates tbody tr:not(.chosen) th button").first
    text = other.inner_text()
    other.click()
    kept = page.locator(".tokens .kept")
    expect(kept).to_have_count(3)
    assert [one.strip() for one in kept.all_inner_texts()] == [one.strip() for one in [*before, text]]
    assert "begin_a=" in page.url
    page.reload()
    expect(page.locator(".tokens .kept")).to_have_count(3)
    page.go_back()
    expect(page.locator(".tokens .kept")).to_have_count(0)


def test_a_knob_that_is_moved_shows_what_it_did(see):
    page = see("decode?prompt=one two&a=" + json.dumps({"do_sample": "true", "seed": "3"}))
    page.get_by_label("top_k", exact=True).fill("3")
    expect(page.locator(".candidates thead")).to_contain_text("top_k")
    expect(page.get_by_text(re.compile(r"top_k took out \d+ tokens and left 3"))).to_be_visible()
    expect(page.locator(".candidates tr.dropped").first).to_contain_text("top_k")
    assert "top_k" in page.url
    page.get_by_label("top_k, slider").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text(re.compile("and left 4"))).to_be_visible()
    page.get_by_label("temperature", exact=True).fill("0")
    expect(page.get_by_role("alert")).to_contain_text("temperature")


def test_two_settings_side_by_side_and_their_copies(see):
    page = see("decode?prompt=one two")
    page.get_by_role("button", name="Compare two settings").click()
    expect(page.locator(".side")).to_have_count(2)
    page.get_by_text("Penalties and bans").click()
    page.get_by_label("repetition_penalty", exact=True).fill("1.8")
    expect(page.locator(".side").nth(1)).to_contain_text("repetition_penalty 1.8")
    expect(page.locator(".side").first).not_to_contain_text("repetition_penalty")
    copies = page.locator(".side").nth(1).locator("[data-copy]")
    curl, python, yaml = (copies.nth(at).get_attribute("data-copy") for at in range(3))
    assert '"repetition_penalty": 1.8' in curl
    assert "repetition_penalty=1.8" in python
    assert "repetition_penalty: 1.8" in yaml
    compile(python, "copied", "exec")
    copies.first.click()
    expect(copies.first).to_have_text("copied")


def test_beams_grow_as_a_tree_with_groups_and_forced_phrases(see):
    knobs = {
        "num_beams": "4",
        "num_beam_groups": "2",
        "diversity_penalty": "1",
        "force_words": "[fox]",
        "max_new_tokens": "8",
    }
    page = see("decode?prompt=one two&a=" + json.dumps(knobs))
    tree = page.locator("svg.tree")
    expect(tree).to_be_visible()
    expect(page.locator("figure .legend")).to_contain_text("group 2")
    expect(tree.locator(".forced").first).to_be_visible()
    assert "".join(page.locator(".tokens").first.locator(".forced").all_inner_texts()).strip() == "fox"
    whole = tree.locator("path.link").count()
    page.get_by_label("Up to token").fill("1")
    assert tree.locator("path.link").count() < whole
    page.get_by_role("button", name="Let it grow").click()
    expect(page.locator("output")).to_have_text("8 / 8")
    assert tree.locator("path.link").count() == whole


def test_the_tokens_of_an_answer_are_gone_through_by_the_keyboard(see):
    page = see("decode?prompt=one two")
    page.locator(".tokens button").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".tokens button").nth(1)).to_be_focused()
    expect(page.locator(".tokens button").nth(1)).to_have_attribute("aria-pressed", "true")


# -- the others ----------------------------------------------------------------------------------------------


def test_the_bar_of_memory_moves_as_the_batch_is_dragged(see):
    page = see("plan?model=Qwen2.5-7B&gpu=24GB&length=512")
    expect(page.locator("#verdict")).to_contain_text("it fits")
    page.get_by_label("Texts at once, slider").fill("6")
    expect(page.locator("#verdict")).to_contain_text("it does not fit")
    assert "batch=64" in page.url
    page.get_by_label("Model", exact=True).fill("no such model")
    expect(page.get_by_role("alert")).to_contain_text("is not known")


def test_a_file_is_dropped_and_its_faults_have_lines(see, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHATS) + "nonsense\n")
    page = see("data")
    page.locator("input[type=file]").set_input_files(path)
    expect(page.get_by_text("mine.jsonl:8")).to_be_visible()
    learnt = page.locator("#examples article .learnt").first
    expect(learnt).to_contain_text("answer 0")
    page.get_by_role("button", name="Further").click()
    expect(page.locator("#examples article").first).to_contain_text("answer 5")
    page.get_by_label("Limit in tokens").fill("3")
    page.get_by_label("Limit in tokens").press("Tab")
    expect(page.get_by_text("7 examples are longer")).to_be_visible()


def test_a_clause_is_completed_and_counts_as_it_is_typed(see):
    page = see("recall")
    where = page.get_by_label("Where-clause")
    where.press_sequentially("ci")
    expect(page.get_by_role("option")).to_have_text(["city"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(where).to_have_value("city")
    where.press_sequentially(" = ")
    expect(page.get_by_role("option", name="'London'")).to_be_visible()
    page.get_by_role("option", name="'London'").click()
    expect(page.locator("#counted")).to_contain_text("30 of 90")
    page.get_by_label("Like this text").fill("tea 31")
    page.get_by_role("button", name="Find rows").click()
    expect(page.locator("tbody tr").first).to_contain_text("words:bio #1")
    page.get_by_role("button", name="Who they are").click()
    expect(page.get_by_role("table", name="city")).to_contain_text("300")
    where.fill("city =")
    expect(page.locator("#counted").get_by_role("alert")).to_be_visible()


def test_a_row_s_judgement_and_the_judge_beside_people(see, place):
    page = see("evaluate")
    expect(page.locator("tbody").first).to_contain_text("relevance")
    expect(page.get_by_text("it said nothing").first).to_be_visible()
    assert page.locator("svg.spread").count() > 5
    page.locator("input[type=file]").set_input_files(place / "runs" / "people.jsonl")
    expect(page.get_by_role("row", name=re.compile("spearman"))).to_be_visible()
    expect(page.locator("figure circle")).to_have_count(11)


def test_a_run_is_started_from_the_form_and_stopped(see, served, place, monkeypatch, tmp_path):
    from danlu.ui import starting

    script = tmp_path / "stand_in.py"
    script.write_text(
        "import signal, time\nfrom pathlib import Path\nfrom danlu.journal import Journal, claimed\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"place = Path({str(place / 'runs' / 'formed')!r})\n"
        "with claimed(place, print):\n    place.mkdir()\n    (place / 'recipe.yaml').write_text('name: formed')\n"
        "    Journal(place).event('begun', '')\n    try:\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        Journal(place).event('interrupted', 'the user asked to stop', step=1)\n"
    )
    real = subprocess.Popen
    monkeypatch.setattr(starting.subprocess, "Popen", lambda _, **more: real([sys.executable, str(script)], **more))
    page = see("start")
    expect(page.get_by_role("alert")).to_contain_text("data: required")
    page.locator("#field-name input").fill("formed")
    page.locator("[id='field-data.path'] input").fill("chats.jsonl")
    expect(page.get_by_label("The recipe")).to_have_value(re.compile("name: formed"))
    expect(page.get_by_text("The recipe of formed is whole.")).to_be_visible()
    page.get_by_placeholder("Find an option").fill("learning_rate")
    expect(page.locator("[id='field-train.learning_rate']")).to_be_visible()
    expect(page.locator("[id='field-data.source']")).to_have_count(0)
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page).to_have_url(re.compile("runs.run=formed"), timeout=30_000)
    expect(page.locator(".run-head")).to_contain_text("running")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".run-head")).to_contain_text("the user asked to stop", timeout=15_000)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()


def test_a_key_is_typed_in_once(browser, place):
    made = Served(lambda: Site(place / "runs"), api_key="secret")
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"{made.url}/runs?run=healed")
        page.get_by_label("Key").fill("wrong")
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_role("alert")).to_have_text("That is not the key.")
        page.get_by_label("Key").fill("secret")
        page.get_by_role("button", name="Enter").click()
        expect(page).to_have_url(re.compile(r"runs\?run=healed"))
        expect(page.locator(".run-head")).to_contain_text("step 60 of 60")
        made.end()
        made.begin()
        page.reload()
        expect(page.locator(".run-head")).to_contain_text("step 60 of 60")
    finally:
        context.close()
        made.end()
