"""What steps that train nothing have found, from results.json: sentences for the page of a chain, and sections.

A part of results.json that such a step leaves -> one sentence (`_SAID`), and where there is more to show a section
(`_SHOWN`). Only reads; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from danlu.errors import size_in_words
from danlu.recall.measure.drawing import lines
from danlu.report.numbers import duration, fixed, is_figure, plain
from danlu.words import Words

Part = Mapping[str, Any]
Table = Callable[[Sequence[str], Sequence[str]], str]


def sentences(results: Part, words: Words) -> list[str]:
    """What came of a step, a sentence for each part that it left; plain text."""
    return [text for name, say in _SAID.items() if results.get(name) for text in say(results[name], words)]


def figures(results: Part, words: Words) -> list[str]:
    """Pictures, as `<figure>` elements."""
    drawn = []
    for name, measured in (results.get("found") or {}).items():
        if measured.get("channels"):
            title = words("Recall at k, over {questions} questions", questions=f"{measured['questions']:,}")
            named = "" if name == "labels" else f" <span>{escape(words.if_known(name))}</span>"
            svg = lines({one["name"]: one["recalls"] for one in measured["channels"]}, title)
            caption = f"<figcaption><b>{words('How well it is found')}</b>{named}</figcaption>"
            drawn.append(f"<figure>{caption}{svg}</figure>")
    return drawn


def sections(results: Part, words: Words, table: Table) -> list[tuple[str, str]]:
    """(title, body) of each part that has more to show than a sentence."""
    shown = [(words.if_known(title), show(results[name], words, table)) for name, (title, show) in _SHOWN.items()
             if results.get(name)]  # fmt: skip
    return [(title, body) for title, body in shown if body]


# -- sentences ---------------------------------------------------------------------------------------------


def _collection(part: Part, words: Words) -> list[str]:
    size, seconds = size_in_words(part["bytes"]), duration(part["seconds"])
    return [words("{rows} rows, {size}, built in {time}", rows=f"{part['rows']:,}", size=size, time=seconds)]


def _events(part: Part, words: Words) -> list[str]:
    return [
        words(
            "{events} events of {users} users, learnt in {time}",
            events=f"{part['events']:,}",
            users=f"{part['users']:,}",
            time=duration(part["seconds"]),
        )
    ]


def _found(part: Part, words: Words) -> list[str]:
    said = []
    for measured in part.values():
        last = measured["channels"][-1]
        recalls = ", ".join(f"recall@{k} {fixed(one['recall'], 3)}" for k, one in last["at"].items())
        told = words("{what}: {questions} questions", what=last["name"], questions=f"{measured['questions']:,}")
        said.append(f"{told}, {recalls}")
    return said


def _asked(part: Sequence[Part], words: Words) -> list[str]:
    one = part[0]
    milliseconds = fixed(one["milliseconds"], 2)
    return [words("{rows} rows counted in {time} ms", rows=f"{one['rows']:,}", time=milliseconds)]


def _picked(part: Part, words: Words) -> list[str]:
    figures = {name: f"{part[name]:,}" for name in ("rows", "among", "repeats")}
    return [words("{rows} of {among} rows picked; {repeats} repeat another", **figures)]


def _cited(part: Part, words: Words) -> list[str]:
    figures = {name: f"{part[name]:,}" for name in ("rows", "found", "held_out", "top")}
    return [
        words(
            "{rows} questions with passages; of {held_out} held out, {found} have the right one among the first {top}",
            **figures,
        )
    ]


def _quantized(part: Part, words: Words) -> list[str]:
    before, after = (size_in_words(part[name]) for name in ("bytes_before", "bytes"))
    form = f"{part['method']}, {part['bits']} bit"
    return [words("{before} → {after} ({form})", before=before, after=after, form=form)]


def _closeness(part: Part, words: Words) -> list[str]:
    kl, same = f"{part['mean_kl']:.3g}", f"{100 * part['same_choice']:.0f}"
    return [words("{kl} nats a token from the original, the same choice at {same} of 100", kl=kl, same=same)]


def _evaluation(part: Part, words: Words) -> list[str]:
    said = []
    models, summaries = part.get("models") or [], part.get("summaries") or {}
    for other in models[1:]:
        for name, interval in part["differences"].get(other, {}).items():
            means = [_mean(summaries.get(model, {}), name) for model in (other, models[0])]
            if is_figure(interval.get("low")) and all(one is not None for one in means):
                decimals = 2 if max(abs(float(one or 0)) for one in means) <= 1 else 1
                before, after = (fixed(float(one or 0), decimals) for one in means)
                low, high = (fixed(-interval[end], decimals, signed=True) for end in ("high", "low"))
                said.append(
                    words(
                        "{measure}: {before} ({model}) → {after}, 95 % interval of the change {low} to {high}",
                        measure=words.if_known(name), before=before, after=after, low=low, high=high,
                        model=other,
                    )
                )  # fmt: skip
    return said[:_MOST]


_MOST = 3  # measures of an evaluation in a sentence each


def _mean(summary: Part, name: str) -> float | None:
    for kind in ("measures", "overlaps"):
        mean = summary.get(kind, {}).get(name, {}).get("mean")
        if mean:
            return float(mean["value"])
    return None


def _exported(part: Part, words: Words) -> list[str]:
    form = " ".join(str(part[name]) for name in ("format", "type") if part.get(name))
    return [words("{form}, {size}", form=form, size=size_in_words(part["bytes"]))]


def _served(part: Part, words: Words) -> list[str]:
    said = words(
        "{citing} of {questions} answers over HTTP name a passage; {time} an answer",
        citing=part["citing"], questions=part["questions"], time=duration(part["seconds"]),
    )  # fmt: skip
    if part.get("known"):
        said += "; " + words("{right} of {known} the right one", right=part["right"], known=part["known"])
    return [said]


_SAID: dict[str, Callable[[Any, Words], list[str]]] = {
    "collection": _collection,
    "events": _events,
    "found": _found,
    "asked": _asked,
    "picked": _picked,
    "cited": _cited,
    "quantized": _quantized,
    "closeness": _closeness,
    "evaluation": _evaluation,
    "exported": _exported,
    "served": _served,
}


# -- sections ----------------------------------------------------------------------------------------------


def _channels(part: Part, words: Words, table: Table) -> str:
    rows = []
    for name, measured in part.items():
        for channel in measured["channels"]:
            for k, quality in channel["at"].items():
                values = [fixed(quality[one], 3) for one in ("recall", "ndcg", "hit_rate", "mrr", "coverage")]
                values += [
                    fixed(channel["alone"][k], 3),
                    *(fixed(channel["latency"][one], 2) for one in ("p50", "p99")),
                ]
                cells = "".join(f"<td class=number>{value}</td>" for value in [str(k), *values])
                named = channel["name"] if name == "labels" else f"{channel['name']}, {words.if_known(name)}"
                rows.append(f"<th scope=row>{escape(named)}</th>{cells}")
    heads = [words("channel"), "#k", *(f"#{one}" for one in ("recall", "nDCG", words("hit rate"), "MRR"))]
    return table([*heads, f"#{words('coverage')}", f"#{words('alone')}", "#p50 ms", "#p99 ms"], rows)


def _clauses(part: Sequence[Part], words: Words, table: Table) -> str:
    rows = [
        f"<td><code>{escape(one['where'])}</code></td><td class=number>{one['rows']:,}</td>"
        f"<td class=number>{fixed(one['milliseconds'], 3)}</td>"
        f"<td class=number>{fixed(one['first_milliseconds'], 2)}</td>"
        for one in part
    ]
    heads = [words("where-clause"), *(f"#{words(head)}" for head in ("rows", "ms, warm", "ms, the first time"))]
    return table(heads, rows)


def _who(part: Part, words: Words, table: Table) -> str:
    made = [f"<p><code>{escape(part['where'])}</code></p>"]
    for one in part["attributes"]:
        rows = [_share(one, share) for share in one["shares"]]
        heads = [escape(one["name"]), "", *(f"#{words(head)}" for head in ("share", "share among all", "TGI"))]
        made.append(f"<div>{table(heads, rows)}</div>")
    return "\n".join(made)


def _share(attribute: Part, share: Part) -> str:
    own, all_ = share["rows"] / max(attribute["known"], 1), share["of_all"] / max(attribute["known_of_all"], 1)
    bar = (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" width="120" height="12" aria-hidden="true">'
        f'<rect width="{100 * own:.1f}" height="6" fill="var(--accent)"/>'
        f'<rect y="6" width="{100 * all_:.1f}" height="4" fill="var(--second)" opacity="0.5"/></svg>'
    )
    tgi = "–" if share["tgi"] is None else f"{share['tgi']:,.0f}"
    return (
        f"<th scope=row>{escape(str(share['value']))}</th><td>{bar}</td><td class=number>{own:.1%}</td>"
        f"<td class=number>{all_:.1%}</td><td class=number>{tgi}</td>"
    )


def _answers(part: Part, words: Words, table: Table) -> str:
    rows = []
    for one in part["shown"]:
        named = ", ".join(map(str, one["named"])) or "–"
        right = "–" if one.get("passage") is None else str(one["passage"])
        texts = [one["question"], one["answer"], one.get("truth")]
        cells = "".join(f'<td dir="auto">{escape(plain(text, words))}</td>' for text in texts)
        rows.append(f"{cells}<td>{escape(named)}</td><td>{escape(right)}</td>")
    heads = [words(head) for head in ("question", "answer", "Reference", "names", "the right one")]
    return table(heads, rows) + _commands(part["uses"])


def _commands(uses: Sequence[str]) -> str:
    return f'<div class="scroll"><pre>{escape(chr(10).join(uses))}</pre></div>'


_SHOWN: dict[str, tuple[str, Callable[[Any, Words, Table], str]]] = {
    "asked": ("Where-clauses", _clauses),
    "found": ("How well it is found", _channels),
    "who": ("Who they are", _who),
    "served": ("Answers over HTTP", _answers),
}
