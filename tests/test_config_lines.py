"""Line numbers of TOML keys: right on every form of the grammar, and never an exception."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from gateway.toml_lines import key_lines, nearest_line

TEXT = '''\
top = 1
[a]
plain = "# no [comment]"
"quoted key" = 2
b.c = 3
long = """
[not.a.table]
key = 1
"""
array = [
  "]", # ]
  [1, 2],
  { x = "=" },
]
after = 4
[[a.list]]
name = 1
[[a.list]]
name = 2
[a.list.sub]
deep = 1
[ d . "e f" ]
last = \'\'\'one line\'\'\'
'''


def test_every_key_has_its_line() -> None:
    tomllib.loads(TEXT)
    lines = key_lines(TEXT)
    assert lines[("top",)] == 1 and lines[("a",)] == 2 and lines[("a", "plain")] == 3
    assert lines[("a", "quoted key")] == 4 and lines[("a", "b", "c")] == 5 and lines[("a", "long")] == 6
    assert lines[("a", "array")] == 10 and lines[("a", "after")] == 15
    assert lines[("a", "list", 0, "name")] == 17 and lines[("a", "list", 1, "name")] == 19
    assert lines[("a", "list", 1, "sub", "deep")] == 21
    assert lines[("d", "e f", "last")] == 23
    assert ("not", "a", "table") not in lines and ("a", "key") not in lines


def test_an_unlocated_key_has_its_parents_line() -> None:
    lines = key_lines("[a]\nb = { c = 1 }\n")
    assert nearest_line(lines, ("a", "b", "c")) == 2
    assert nearest_line(lines, ("x", "y")) is None


@given(st.text(alphabet="ab=\"'[]{}.# \n\\", max_size=80))
def test_no_text_makes_it_fail(text: str) -> None:
    key_lines(text)


names = st.text(alphabet="abc-_1", min_size=1, max_size=4)
scalars = st.one_of(st.integers(0, 9), st.text(alphabet="ab[]#={}'\" \n", max_size=12), st.booleans())


@given(st.dictionaries(names, st.dictionaries(names, scalars, max_size=4), max_size=4))
def test_lines_of_any_tables_are_those_it_was_written_on(tables: dict[str, dict[str, object]]) -> None:
    written: list[str] = []
    expected = {}
    for table, values in tables.items():
        written.append(f"[{table}]")
        expected[(table,)] = len(written)
        for key, value in values.items():
            expected[(table, key)] = len(written) + 1
            text = str(value).lower() if not isinstance(value, str) else quoted(value)
            written += f"{key} = {text}".split("\n")
    text = "\n".join(written)
    assert tomllib.loads(text) == tables
    assert key_lines(text) == expected


def quoted(value: str) -> str:
    """Multi-line where the value has line breaks."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"""\n{escaped}"""' if "\n" in value else f'"{escaped}"'
