"""Persons, articles, and who read what: made up, as many as are asked for, the same for the same seed.

For showing and trying a collection without data at hand. What persons like decides what they read, so that there is
something to be learnt from events. Batches of pyarrow's; nothing else is known of collections here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from danlu.errors import ConfigError

BATCH = 1 << 17
_DAY_ONE, _DAYS = 14_610, 5_800  # days since 1970: from 2010 on
_SECONDS = 86_400


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


CITIES = _listed(
    "Aleppo Bergen Chengdu Dakar Erfurt Florence Geneva Hanoi Izmir Jaipur Kyoto Lima Malmo Nantes Osaka Porto "
    "Quito Riga Suzhou Turin Utrecht Varna Wuhan Xiamen Yerevan Zagreb"
)
JOBS = _listed(
    "archivist baker beekeeper biologist bookbinder botanist brewer carpenter cartographer chemist conductor cook "
    "dancer dentist diver editor electrician engineer farmer firefighter florist geologist glassblower historian "
    "illustrator jeweller journalist judge librarian locksmith mason mechanic midwife miller musician nurse "
    "optician painter pharmacist photographer pilot plumber potter sailor sculptor surgeon tailor teacher "
    "translator vet weaver welder"
)
MOODS = _listed(
    "bold bright calm careful cheerful clever curious daring eager earnest frank gentle honest keen kind lively "
    "loyal modest patient playful polite proud quick quiet shy sincere stern tidy warm wise witty young"
)
HOBBIES = _listed(
    "archery astronomy badminton baking ballet birdwatching calligraphy camping canoeing carving ceramics chess "
    "climbing cooking crosswords cycling darts drawing embroidery fencing films fishing foraging gardening "
    "genealogy go gymnastics hiking judo juggling kayaking kites knitting lacrosse leatherwork magic marathons "
    "mosaics mushrooms opera origami orienteering painting pétanque poetry pottery puppetry quilting radio rowing "
    "running sailing sewing skating skiing snorkelling stamps surfing swimming tango tea theatre wrestling yoga"
)
PLACES = _listed(
    "Atacama Azores Baikal Borneo Caucasus Cyclades Dolomites Faroes Galapagos Gobi Himalaya Hebrides Iceland "
    "Jura Kamchatka Karakoram Lapland Lofoten Madeira Marrakesh Namib Nile Okavango Orkney Pamir Patagonia "
    "Pyrenees Sahara Samarkand Serengeti Shetland Sicily Svalbard Tasmania Tatra Tibet Transylvania Yukon Yunnan "
    "Zanzibar"
)


def people(count: int = 1_000_000, seed: int = 7) -> Iterator[pa.RecordBatch]:
    """Batches of persons: id, sex, age, city, joined, interests (two of HOBBIES), bio (a text)."""
    for start, drawn in _drawn(count, seed):
        rows = len(drawn["sex"])
        named = {name: _words(of, drawn[name]) for name, of in _OF.items()}
        likes = _lists([drawn["first"], drawn["second"]], HOBBIES)
        bio = pc.binary_join_element_wise(
            "a", named["mood"], named["job"], "from", named["city"], "who likes", named["first"], "and",
            named["second"], "and dreams of", named["place"], " ",
        )  # fmt: skip
        yield pa.record_batch(
            {
                "id": pa.array(np.arange(start, start + rows)),
                "sex": named["sex"],
                "age": pa.array(drawn["age"]),
                "city": named["city"],
                "joined": pa.array(drawn["joined"].astype(np.int32), pa.int32()).cast(pa.date32()),
                "interests": likes,
                "bio": bio,
            }
        )


def people_labels(count: int = 1_000_000, seed: int = 7, questions: int = 300) -> Iterator[dict[str, Any]]:
    """What one remembers of a person: sex, city and three words of the bio; and who it was. Some others fit as well."""
    if questions < 1:
        raise ConfigError(f"questions {questions}", allowed="1 or more")
    _, drawn = next(_drawn(count, seed))
    names = ("sex", "city", "job", "first", "place")
    for at in np.linspace(0, len(drawn["sex"]) - 1, min(questions, len(drawn["sex"]))).astype(np.int64):
        sex, city, *words = (_OF[name][int(drawn[name][at])] for name in names)
        yield {"query": {"where": f"sex = '{sex}' and city = '{city}'", "like": " ".join(words)}, "relevant": [int(at)]}


def articles(count: int = 20_000, seed: int = 7) -> Iterator[pa.RecordBatch]:
    """Batches of articles: id, topic (one of HOBBIES), year, title."""
    dice = np.random.default_rng([seed, 1])
    topic = _topics(count)
    place, mood = dice.integers(0, len(PLACES), count), dice.integers(0, len(MOODS), count)
    title = pc.binary_join_element_wise(
        _words(HOBBIES, topic), "in", _words(PLACES, place), "for the", _words(MOODS, mood), " "
    )
    year = pa.array(dice.integers(2010, 2026, count))
    named = {"id": pa.array(np.arange(count)), "topic": _words(HOBBIES, topic), "year": year, "title": title}
    yield from pa.Table.from_pydict(named).to_batches(max_chunksize=BATCH)


def reads(
    readers: int = 50_000, articles: int = 20_000, each: int = 20, count: int = 1_000_000, seed: int = 7
) -> Iterator[pa.RecordBatch]:
    """Batches of events: user (a person), item (an article), time. Four of five are of a topic that the person likes.

    Of a topic, few articles are read by many. Args: readers: persons who read. each: what one reads, on average.
    """
    if not (0 < readers <= count and articles >= len(HOBBIES) and each > 0):
        raise ConfigError(
            "reads: readers, articles or each", allowed="1 to count readers, 64 articles or more, each > 0"
        )
    dice = np.random.default_rng([seed, 2])
    _, drawn = next(_drawn(min(readers, BATCH), seed))
    user = np.sort(dice.integers(0, min(readers, BATCH), readers * each))
    likes = np.stack([drawn["first"], drawn["second"]])[dice.integers(0, 2, len(user)), user]
    topic = np.where(dice.random(len(user)) < 0.8, likes, dice.integers(0, len(HOBBIES), len(user)))
    of_topic = articles // len(HOBBIES)
    rank = np.minimum(dice.pareto(1.0, len(user)).astype(np.int64), of_topic - 1)
    time = (_DAY_ONE + _DAYS + dice.random(len(user)) * 90) * _SECONDS
    table = pa.table({"user": user, "item": topic + rank * len(HOBBIES), "time": time.astype(np.int64)})
    yield from table.to_batches(max_chunksize=BATCH)


def _topics(count: int) -> npt.NDArray[np.int64]:
    return np.arange(count) % len(HOBBIES)


_OF: dict[str, Sequence[str]] = {
    "sex": ("F", "M"), "city": CITIES, "job": JOBS, "mood": MOODS, "first": HOBBIES, "second": HOBBIES, "place": PLACES,
}  # fmt: skip


def _drawn(count: int, seed: int) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """(number of the first person, a code for each attribute of each) of every batch."""
    if count < 1:
        raise ConfigError(f"count {count}", allowed="1 or more")
    for start in range(0, count, BATCH):
        dice, rows = np.random.default_rng([seed, 0, start]), min(BATCH, count - start)
        drawn = {name: dice.integers(0, len(of), rows) for name, of in _OF.items()}
        drawn["city"] = (len(CITIES) * dice.random(rows) ** 2).astype(np.int64)  # some are large
        drawn["second"] = (drawn["first"] + dice.integers(1, len(HOBBIES), rows)) % len(HOBBIES)
        drawn["age"] = np.clip(dice.normal(41, 16, rows), 14, 99).astype(np.int64)
        drawn["joined"] = _DAY_ONE + dice.integers(0, _DAYS, rows)
        yield start, drawn


def _words(of: Sequence[str], codes: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(of, pa.string()).take(pa.array(codes))


def _lists(codes: Sequence[npt.NDArray[np.int64]], of: Sequence[str]) -> pa.Array:
    flat = np.stack(codes, axis=1).ravel()
    starts = np.arange(0, len(flat) + 1, len(codes), dtype=np.int64)
    return pa.LargeListArray.from_arrays(pa.array(starts), _words(of, flat))
