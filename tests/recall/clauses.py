"""Where-clauses drawn at random, in our spelling and in SQLite's."""

from __future__ import annotations

from people import CITIES, TAGS


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def drawn_test(draw):
    """(our spelling, SQLite's) of one test."""
    number = draw.choice(["age", "big", "score", "user_id"])
    value = draw.choice(["0", "25", "-1", "9223372036854775807", "-9223372036854775808", "50.5", "0.5", "1e3"])
    some = ", ".join(draw.choices(["3", "25", "0.5", "-1", "60"], k=draw.randint(1, 4)))
    word = draw.choice(["city", "sex"])
    words = ", ".join(map(quoted, draw.choices([*CITIES, "F", "none such"], k=draw.randint(1, 4))))
    day = f"'20{draw.randint(20, 25)}-0{draw.randint(1, 9)}-10'"
    moment = f"'2024-0{draw.randint(3, 6)}-11 10:20:30'"
    tags = draw.choices(TAGS, k=draw.randint(1, 3))
    has = [f"interests like '%|{tag}|%'" for tag in tags]
    listed = ", ".join(map(quoted, tags))
    compare = draw.choice(["=", "<>", "<", "<=", ">", ">=", "!="])
    column = draw.choice(["age", "city", "score", "is_member", "registered", "seen", "interests", "bio"])
    prefix = draw.choice(["北%", "a%", "%", "S_o%", "%o%", "O''%", "", "Rome"])
    return draw.choice(
        [
            (f"{number} {compare} {value}",) * 2,
            (f"{value} {compare} {number}",) * 2,
            (f"{number} in ({some})",) * 2,
            (f"{number} not in ({some})",) * 2,
            (f"{number} between {value} and 70",) * 2,
            (f"age not between 20 and {value}",) * 2,
            (f"{word} in ({words})",) * 2,
            (f"{word} not in ({words})",) * 2,
            (f"{word} {compare} {quoted(draw.choice(CITIES))}",) * 2,
            (f"city like '{prefix}'",) * 2,
            (f"city not like '{prefix}'",) * 2,
            (f"registered {compare} {day}",) * 2,
            (f"registered between {day} and '2024-01-01'",) * 2,
            (f"seen {compare} {moment}",) * 2,
            ("is_member", "is_member"),
            ("is_member = false", "is_member = 0"),
            ("is_member is not true", "is_member is not true"),
            (f"{column} is null",) * 2,
            (f"{column} is not null",) * 2,
            (f"interests in ({listed})", " or ".join(has)),
            (f"has_any(interests, {listed})", " or ".join(has)),
            (f"has_all(interests, {listed})", " and ".join(has)),
            (f"has_none(interests, {listed})", f"not ({' or '.join(has)})"),
            ("true", "true"),
            ("false", "false"),
        ]
    )


def drawn_clause(draw, depth):
    if depth == 0 or draw.random() < 0.3:
        ours, theirs = drawn_test(draw)
        return ours, f"({theirs})"
    if draw.random() < 0.25:
        ours, theirs = drawn_clause(draw, depth - 1)
        return f"not ({ours})", f"not ({theirs})"
    word = draw.choice([" and ", " or "])
    parts = [drawn_clause(draw, depth - 1) for _ in range(draw.randint(2, 4))]
    return word.join(f"({ours})" for ours, _ in parts), word.join(f"({theirs})" for _, theirs in parts)
