"""The report: complete, honest about what is absent, safe against what it shows, and self-contained."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from danlu.errors import DataError
from danlu.journal import Journal
from danlu.report.charts import charts, tokens_per_second
from danlu.report.curves import MOST_POINTS, smooth, thin
from danlu.report.numbers import decimals_for, duration, fixed, large, plain
from danlu.report.page import write_report
from danlu.report.verdict import judge
from danlu.words import Words, speaking

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """The elements and the visible text of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def metric_rows(steps: int) -> list[dict]:
    return [
        {
            "step": step,
            "tokens": 4000 + step % 7,
            "learnt_tokens": 1000,
            "loss": 2.4 + math.exp(-step / 100) + 0.1 * math.sin(step * 1.7),
            "lr": 3e-4 * (1 - step / (steps + 1)),
            "grad_norm": 0.8 + 0.1 * math.cos(step),
            "memory_bytes": 2 * 2**30,
            "seconds": 10.0,
            **({"eval_loss": 2.5 + math.exp(-step / 120)} if step % 100 == 0 else {}),
        }
        for step in range(1, steps + 1)
    ]


RESULTS = {
    "data": {"train": 2310, "held_out": 240},
    "before": {"loss": 3.2123, "perplexity": 24.83, "overlap": 18.4},
    "after": {"loss": 2.4021, "perplexity": 11.05, "overlap": 31.7},
    "difference": {
        "loss": {"value": -0.8102, "low": -0.8512, "high": -0.7721, "level": 0.95},
        "overlap": {"value": 13.3, "low": 10.9, "high": 15.8, "level": 0.95},
    },
    "examples": [
        {
            "prompt": "怎样退货？",
            "reference": "七天内可退。",
            "before": "退退退",
            "after": "七天内",
            "place": "faq.jsonl:7",
        }
    ],
    "parity": {"passed": True, "tokens": 64},
    "machine": {"device": "cpu", "memory_bytes": 16 * 2**30},
}


def filled(directory: Path, steps: int = 1000, results: dict | None = None) -> Journal:
    directory.mkdir()
    journal = Journal(directory)
    journal.recipe_path.write_text("model: smollm2-135m\ntrain: {learning_rate: 3e-4}\n", "utf-8")
    lines = [json.dumps(row) + "\n" for row in metric_rows(steps)]
    journal.metrics_path.write_text("".join(lines), "utf-8")
    journal.event("precision", "the processor multiplies bfloat16 quickly", dtype="bfloat16")
    journal.event("not_finite", "the gradient was not finite", step=412, loss=math.nan, rates=[3e-4, 3e-5])
    for step, values in (RESULTS if results is None else results).items():
        journal.result(step, values)
    return journal


def page_of(journal: Journal) -> Page:
    return Page(write_report(journal).read_text("utf-8"))


def test_a_whole_run_is_told_whole(tmp_path):
    page = page_of(filled(tmp_path / "客服问答"))
    for told in (
        "客服问答",
        "Held-out loss fell from 3.21 to 2.40 (95 % interval of the change −0.85 … −0.77).",
        "rose from 18.4 to 31.7 (95 % interval of the change +10.9 … +15.8).",
        "−13.78",
        "240 held-out examples",
        "怎样退货？",
        "七天内可退。",
        "退退退",
        "faq.jsonl:7",
        "not_finite",
        "the gradient was not finite",
        "not a number",
        "[0.0003, 3e-05]",
        "learning_rate: 3e-4",
        "2 h 46 min",
        "400 tokens/s",
        "2.00 GiB",
    ):
        assert told in page.text
    assert "Not everything is here" not in page.text


def test_the_report_stands_in_the_run_directory(tmp_path):
    journal = filled(tmp_path / "run", steps=3)
    assert write_report(journal) == journal.report_path
    assert [path.name for path in tmp_path.glob("run/*.tmp")] == []


def test_the_same_run_gives_the_same_bytes(tmp_path):
    journal = filled(tmp_path / "run", steps=20)
    assert write_report(journal).read_bytes() == write_report(journal).read_bytes()


def test_a_thousand_steps_stay_small(tmp_path):
    assert write_report(filled(tmp_path / "run", steps=1000)).stat().st_size < 200_000


def test_each_curve_has_words_for_those_who_cannot_see_it(tmp_path):
    curves = [svg for svg in page_of(filled(tmp_path / "run")).named("svg") if svg.get("class") == "curve"]
    assert len(curves) == 5
    assert all(svg["role"] == "img" and "lowest" in str(svg["aria-label"]) for svg in curves)
    assert "training loss from" in str(curves[0]["aria-label"])
    assert "held-out loss from" in str(curves[0]["aria-label"])


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    html = write_report(filled(tmp_path / "run")).read_text("utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base"} == set()
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action"):
                assert str(value).startswith("#")
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_curves_follow_the_theme_of_the_page(tmp_path):
    html = write_report(filled(tmp_path / "run")).read_text("utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--accent)" in drawn
    assert "var(--ink)" in drawn
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    assert "prefers-color-scheme: dark" in html


HOSTILE = "<script>alert('炉')</script>\"'&"


def hostile(value):
    """The same shape with hostile text in place of each text and at the end of each key."""
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def test_what_users_and_models_wrote_is_escaped(tmp_path):
    journal = filled(tmp_path / "<script>alert(1)<", results=hostile(RESULTS))
    journal.recipe_path.write_text(f"name: {HOSTILE}\n", "utf-8")
    journal.event(HOSTILE, HOSTILE, **{HOSTILE: HOSTILE, "inner": [HOSTILE], "place": {HOSTILE: 1}})
    journal.result("before", {"loss": HOSTILE, HOSTILE: HOSTILE})
    journal.result("machine", {HOSTILE: HOSTILE})
    html = write_report(journal).read_text("utf-8")
    assert "<script" not in html
    assert Page(html).named("script") == []
    assert Page(html).text.count("<script>alert('炉')</script>") >= 12


def test_an_empty_directory_is_said_to_be_empty(tmp_path):
    page = page_of(Journal(tmp_path))
    assert "No verdict: held-out loss was not measured before or after training." in page.text
    for name in ("recipe.yaml", "metrics.jsonl", "events.jsonl", "before (", "after (", "difference (", "parity ("):
        assert name in page.text
    for section in ("No step was recorded", "No answers were kept", "No decision was recorded"):
        assert section in page.text


def test_a_run_stopped_early_shows_what_there_is(tmp_path):
    page = page_of(filled(tmp_path / "run", steps=5, results={"before": {"loss": 3.2}}))
    assert "No verdict: held-out loss was not measured after training." in page.text
    assert "3.20" in page.text
    assert "before (the model" not in page.text
    assert "after (the model after training)" in page.text


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no run directory"):
        write_report(Journal(tmp_path / "absent"))


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_drawn_as_dots(tmp_path, steps):
    assert page_of(filled(tmp_path / "run", steps=steps)).text.count("step") >= 5


def test_rows_that_lack_columns_leave_their_figures_out():
    assert charts([]) == []
    assert [chart.title for chart in charts([{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}])] == ["Loss"]
    assert charts([{"step": 1, "loss": math.nan}]) == []


def test_speed_is_tokens_over_seconds():
    rows = [{"tokens": 4000, "seconds": 8.0}, {"tokens": 10, "seconds": 0}, {"tokens": 10}]
    assert tokens_per_second(rows)[0] == 500
    assert [math.isnan(value) for value in tokens_per_second(rows)] == [False, True, True]


def results_with(low: float, high: float, before: float = 3.0, after: float = 2.9) -> dict:
    interval = {"value": after - before, "low": low, "high": high, "level": 0.9}
    return {"before": {"loss": before}, "after": {"loss": after}, "difference": {"loss": interval}}


@pytest.mark.parametrize(
    ("results", "sentence", "tone"),
    [
        (results_with(-0.2, -0.05), "fell from 3.00 to 2.90 (90 % interval of the change −0.20 … −0.05)", "better"),
        (results_with(0.1, 0.4, after=3.2), "rose from 3.00 to 3.20 (90 % interval", "worse"),
        (results_with(-0.3, 0.1), "did not change clearly, from 3.00 to 2.90", "open"),
        (results_with(-0.3, 0.1), "contains zero", "open"),
        (results_with(-0.2, -0.0004), "−0.2000 … −0.0004", "better"),
        ({"before": {"loss": 3.0}, "after": {"loss": 2.0}}, "whether that is chance was not measured", "open"),
        ({"before": {"loss": 3.0}, "after": {"loss": math.nan}}, "not measured after training", "open"),
        ({}, "not measured before or after training", "open"),
    ],
)  # fmt: skip
def test_the_verdict_says_no_more_than_the_interval(results, sentence, tone):
    verdict = judge(results)
    assert sentence in verdict.sentence
    assert verdict.tone == tone


def test_more_overlap_is_better():
    assert judge(RESULTS, "overlap").tone == "better"


def test_thinning_keeps_ends_and_spikes():
    values = [1.0] * 5000
    values[1234], values[4321], values[99] = 50.0, -7.0, math.nan
    x, y = thin(list(range(5000)), values)
    assert len(x) == len(y) <= MOST_POINTS
    assert (x[0], x[-1]) == (0, 4999)
    assert (1234, 50.0) in zip(x, y, strict=True)
    assert (4321, -7.0) in zip(x, y, strict=True)
    assert x == sorted(x)


def test_short_curves_are_left_alone():
    assert thin([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_smoothing_by_hand():
    # memory 2: keep 1/2. Sums 1, 2.5, 4.25 over weights 1/2, 3/4, 7/8, halved: 2, 10/3, 34/7.
    # 2: 0.5·2 = 1 over 0.5. 4: 0.5 + 2 = 2.5 over 0.75. 6: 1.25 + 3 = 4.25 over 0.875.
    assert smooth([2.0, 4.0, 6.0], memory=2) == pytest.approx([2, 10 / 3, 34 / 7])
    assert smooth([5.0, 5.0, 5.0], memory=10) == pytest.approx([5, 5, 5])
    gap = smooth([2.0, math.nan, 4.0], memory=2)
    assert math.isnan(gap[1])
    assert gap[2] == pytest.approx(10 / 3)


def test_numbers_as_a_reader_wants_them():
    assert plain(None) == "–"
    assert plain(True) == "yes"
    assert plain(-12345) == "−12,345"
    assert plain(0.00031234) == "0.0003123"
    assert plain(math.inf) == "infinite"
    assert plain({"键": 1}) == '{"键": 1}'
    assert fixed(-0.001, 2, signed=True) == "0.00"
    assert fixed(1234.5, 1, signed=True) == "+1,234.5"
    assert decimals_for([0.5, 0.012]) == 3
    assert decimals_for([0.0]) == 2
    assert [duration(s) for s in (12.34, 245, 12000)] == ["12.3 s", "4 min 5 s", "3 h 20 min"]
    assert [large(n) for n in (950, 12_345, 3_590_000, 2e9)] == ["950", "12,345", "3.59 million", "2.00 billion"]


# -- in Chinese


def shown_in_chinese(journal: Journal) -> Page:
    with speaking("zh"):
        return page_of(journal)


def test_labels_follow_the_language_and_what_was_written_stays(tmp_path):
    page = shown_in_chinese(filled(tmp_path / "run"))
    for told in (
        "验证集损失从 3.21 降到 2.40（变化的 95 % 置信区间 −0.85 … −0.77）。",
        "在 240 条训练从未见过的验证集样本上测量",
        "训练前后对比",
        "非数（NaN）",
        "400.30 万",  # 1,000 steps of 4000 to 4006 tokens
        "400 token/秒",
        "the gradient was not finite",  # searched for as it is
        "not_finite",
    ):
        assert told in page.text, told
    assert page.named("html")[0]["lang"] == "zh-CN"
    curves = [svg for svg in page.named("svg") if svg.get("class") == "curve"]
    assert "训练损失从开始的" in str(curves[0]["aria-label"])
    assert not re.search(r"held out|smoothed|Gradient", page.text)


def test_an_empty_run_is_told_in_chinese(tmp_path):
    page = shown_in_chinese(Journal(tmp_path))
    assert "无法判断：训练前后都没有测量验证集损失。" in page.text
    assert "recipe.yaml（为空或不存在）" in page.text


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (results_with(0.1, 0.4, after=3.2), "从 3.00 升到 3.20"),
        (results_with(-0.3, 0.1), "没有明显变化（3.00 → 2.90）"),
        ({"before": {"loss": 3.0}, "after": {"loss": 2.0}}, "没有测量这一变化是否出于偶然"),
        ({"before": {"loss": 3.0}}, "训练后没有测量验证集损失"),
        ({"after": {"loss": 3.0}}, "训练前没有测量验证集损失"),
    ],
)
def test_the_verdict_in_chinese(results, sentence):
    assert sentence in judge(results, words=Words("zh")).sentence


def test_long_counts_in_chinese():
    assert [large(n, Words("zh")) for n in (950, 12_345, 3_590_000, 2e9)] == ["950", "1.23 万", "359.00 万", "20.00 亿"]
