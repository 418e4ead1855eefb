"""Imports go one way: a file imports only from rows above its own, or from its own package; inside a room likewise."""

import ast
from pathlib import Path

import pytest

import danlu

ROOT = Path(danlu.__file__).parent
ROWS = [
    "errors", "fingerprint", "words", "config", "processes", "container", "device", "journal", "track", "spec", "hub",
    "native", "loopback", "plan", "data", "model", "generate", "train", "evaluate", "quantize", "recall", "serve",
    "report", "recipe", "steps", "chain", "run", "foreign", "terminal", "help", "flags", "answering", "ui", "commands",
    "cli", "__main__",
]  # fmt: skip


# Inside a room: its inner rooms, and the files that stand in none.
INNER = {
    "plan": ["shapes", "kinds", "configs", "presets", "models", "lora", "rate", "programs", "cache", "memory",
             "cards", "fit", "quantization", "whole"],
    "data": [
        "row", "records", "example", "shapes", "files", "formats", "tokens", "rendering", "chat", "batches",
        "held_out", "source", "look", "headings", "stdlib", "domain",
    ],
    "model": [
        "grouped", "compute", "company", "four_bit", "formats", "language_part", "expert_codes", "quantized", "load",
        "adapter_files", "named", "lora_options", "lora_targets", "adapters", "lora_files", "lora_bank",
        "lora_sum", "lora_in_place", "mapped", "lean", "likelihood", "score_head", "turns",
    ],
    "generate": ["hf", "words", "params", "scores", "search", "batch", "answers", "logprobs", "requests", "outcomes",
                 "watching", "adapters", "glance", "kinds", "engine"],
    "serve": ["faults", "options", "wire", "calls", "replies", "metrics", "continuing", "samples", "service", "stream",
              "tokenize", "response_events", "embeddings", "recalls", "backends", "others", "keys", "server", "api",
              "command"],
    "track": ["event_files", "trackers", "tracking"],
    "foreign": ["values", "table", "shell", "python_source", "making", "writing", "sources", "hugging_face",
                "llama_factory", "axolotl", "ms_swift", "trl", "reading"],
    "recall": ["embed", "rows", "rowset", "disk", "files", "manifest", "opened", "columns", "kinds", "keywords",
               "vectors", "derived", "options", "where", "fitted", "databases", "sources", "embedding", "planning",
               "building", "segment", "profile", "tables", "tagging", "writing", "exporting", "query", "behaviour",
               "measure", "learned", "towering", "acting", "channels", "fusing", "candidates", "collection",
               "clickhouse", "demo", "ids_out", "passages", "picking", "teaching", "labels"],
    "evaluate": ["bootstrap", "overlap", "sentences", "wording", "held_out", "rubrics", "rows", "prompts", "scale",
                 "judge", "kept", "prior", "evaluating", "signals", "correlation", "significance", "client", "remote",
                 "perturb", "fitting", "heads", "pair_head", "pair_judge", "trained", "pair_training", "options",
                 "opening", "summary", "written", "gates", "contamination", "whole", "choices", "answering",
                 "forgetting", "pairwise", "models", "probes", "people"],
    "ui": ["options", "words", "guard", "site", "requests", "forms", "shell", "series", "runs", "files", "starting",
           "runs_page", "decode_page", "plan_page", "data_page", "recall_page", "evaluate_page", "start_page", "app",
           "command"],
    "steps": ["step", "directory", "prove", "merge", "quantize", "prepare", "parts", "foresight", "fitting", "training",
              "preferences", "judging", "pretrain", "sft", "reward", "dpo", "ppo", "evaluate", "judge", "rows",
              "recall", "pick", "cite", "export", "serve", "kinds"],
}  # fmt: skip


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "danlu":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("danlu.")}
    return rooms - {"__version__"}


def inner_imports(path: Path, room: str) -> set[str]:
    """Names of what a file imports from its own room."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[:2] == ["danlu", room]:
            parts = node.module.split(".")
            names |= {parts[2]} if len(parts) > 2 else {alias.name for alias in node.names}
    return names


def test_every_room_has_a_row():
    rooms = {p.stem for p in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert rooms - {"__init__"} <= set(ROWS)


def test_imports_only_from_rows_above():
    upward = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        room = parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        allowed = {*ROWS[: ROWS.index(room)], *([room] if len(parts) > 1 else [])}
        upward += [f"{path.relative_to(ROOT)} imports {other}" for other in imported_rooms(path) - allowed]
    assert upward == []


@pytest.mark.parametrize("room", INNER)
def test_inside_a_room_imports_go_one_way_as_well(room):
    rows, upward = INNER[room], []
    here = {path.stem for path in (ROOT / room).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert here - {"__init__"} == set(rows)
    for path in (ROOT / room).rglob("*.py"):
        own = path.relative_to(ROOT / room).parts[0].removesuffix(".py")
        if own != "__init__":
            others = inner_imports(path, room) - set(rows[: rows.index(own)]) - {own}
            upward += [f"{path.relative_to(ROOT)} imports {other}" for other in others]
    assert upward == []


def test_every_file_of_tests_has_a_name_of_its_own():
    """pytest imports them by their names alone: of two, one would not be collected."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
