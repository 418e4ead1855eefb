"""The table of docs/data.md and docs/data.zh.md, made from the code: `python tests/data/shapes_table.py`."""

from pathlib import Path

from danlu.data.shapes.shapes import SHAPES

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEADS = {
    "data.md": "| columns | read as | written by |\n|---|---|---|",
    "data.zh.md": "| 列 | 读作 | 来源 |\n|---|---|---|",
}
BEGIN, END = "<!-- shapes -->\n", "<!-- end of shapes -->"


def table(page: str) -> str:
    rows = [
        f"| {', '.join(f'`{name}`' for name in shape.columns)} | `{shape.describe()}` | {shape.used_by} |"
        for shape in SHAPES
    ]
    return "\n".join([HEADS[page], *rows]) + "\n"


def with_table(page: str, text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table(page)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for name in HEADS:
        path = DOCS / name
        path.write_text(with_table(name, path.read_text("utf-8")), "utf-8")
