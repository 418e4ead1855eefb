"""tantivy's side of benchmarks/recall_words.py: one segment, questions one after the other."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import tantivy
from recalling import best, request, size_bytes
from tantivy import Occur


def main() -> None:
    asked = request()
    table = pq.read_table(asked["table"])
    place = Path(asked["folder"])
    place.mkdir()
    begun = time.process_time()
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name="blanks", index_option="freq")
    builder.add_text_field("group", tokenizer_name="raw", index_option="basic")
    schema = builder.build()
    index = tantivy.Index(schema, path=str(place))
    index.register_tokenizer("blanks", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build())
    writer = index.writer(heap_size=1 << 30, num_threads=1)
    for text, group in zip(table["text"].to_pylist(), table["group"].to_pylist(), strict=True):
        writer.add_document(tantivy.Document(text=[text], group=[group]))
    writer.commit()
    writer.wait_merging_threads()
    built = time.process_time() - begun
    index.reload()
    searcher = index.searcher()
    some = tantivy.Query.const_score_query(tantivy.Query.term_query(schema, "group", "group 7"), 0.0)

    def question(text: str, filtered: bool) -> tantivy.Query:
        words = [(Occur.Should, tantivy.Query.term_query(schema, "text", word)) for word in text.split()]
        whole = tantivy.Query.boolean_query(words)
        return tantivy.Query.boolean_query([(Occur.Must, whole), (Occur.Must, some)]) if filtered else whole

    def ask(filtered: bool) -> list[list[float]]:
        found = [searcher.search(question(text, filtered), 10, count=False) for text in asked["questions"]]
        return [[score for score, _ in one.hits] for one in found]

    seconds, scores = best(lambda: ask(False), asked["repeats"], time.process_time)
    some_seconds, some_scores = best(lambda: ask(True), asked["repeats"], time.process_time)
    count = len(asked["questions"])
    print(
        json.dumps(
            {
                "version": version("tantivy"), "build": built, "size": size_bytes(place), "all": count / seconds,
                "some": count / some_seconds, "scores": scores, "some scores": some_scores,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
