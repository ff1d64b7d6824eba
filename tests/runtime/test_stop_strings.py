"""Stop strings: whatever the cuts of the stream, the text shown is the text before the first stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.stop_strings import StopStrings


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    machine = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += machine.feed(piece)
    return text + machine.flush(), machine.found


def test_a_stop_string_across_feeds_is_found_and_hidden() -> None:
    assert shown(["Paris", ".\n", "\nQ", "uestion"], ["\n\nQ"]) == ("Paris.", True)


def test_what_only_looked_like_a_stop_is_shown() -> None:
    assert shown(["a<", "b"], ["<end>"]) == ("a<b", False)


def test_the_earliest_of_several_stops_wins() -> None:
    assert shown(["one two three"], ["three", "two"]) == ("one ", True)


def test_of_two_that_share_an_end_the_longer_is_hidden_and_one_complete_before_counts() -> None:
    assert shown(["x\naa"], ["aa", "\naa"]) == ("x", True)
    assert shown(["x\naa"], ["a", "\naa"]) == shown(list("x\naa"), ["a", "\naa"]) == ("x\n", True)


def test_without_stops_nothing_is_held_back() -> None:
    machine = StopStrings(["", *[]])
    assert machine.feed("text") == "text"


@given(text=st.text("ab\n", max_size=40), stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), data=st.data())
def test_any_cut_of_the_stream_shows_the_same(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert shown(pieces, stops) == ((text[: min(found)[1]], True) if found else (text, False))
