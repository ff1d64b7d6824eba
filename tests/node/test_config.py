from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import load_config, parse_size, split_address
from protocol.errors import BadInput


@pytest.mark.parametrize(
    ("text", "size"),
    [("120MB", 120_000_000), ("2GiB", 2 << 30), ("1.5G", 1_500_000_000), ("7", 7), (7, 7), ("3 kib", 3072), ("9B", 9), ("1TB", 10**12)],
)
def test_sizes_are_decimal_unless_they_say_binary(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1XB", "1iB", "1e9", True, None, 1.5, "9" * 40])
def test_what_is_no_size_is_refused_naming_the_key(text: object) -> None:
    with pytest.raises(BadInput, match="storage"):
        parse_size(text, "storage")


@given(st.integers(0, 2**60))
def test_plain_numbers_are_bytes(number: int) -> None:
    assert abs(parse_size(str(number)) - number) <= number >> 50


@pytest.mark.parametrize(("text", "pair"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80)), ("host:65535", ("host", 65_535))])
def test_addresses(text: str, pair: tuple[str, int]) -> None:
    assert split_address(text) == pair


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:65536", "host:-1", "::1:80", "host:٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="HOST:PORT"):
        split_address(text)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('lend = "none"\nprivacy = "local"\nends = "local"\nmax_memory = "1GB"\n')
    config = load_config(tmp_path, {"lend": "both", "ends": None, "join": ()}, {"MF_LEND": "compute", "MF_PRIVACY": "swarm", "HOME": "/"})
    assert (config.lend, config.privacy, config.ends, config.max_memory) == ("both", "swarm", "local", 10**9)


def test_defaults_store_little_and_lend_no_compute(tmp_path: Path) -> None:
    config = load_config(tmp_path, {}, {})
    assert (config.lend, config.privacy, config.max_memory, config.http) == ("storage", "trusted", None, "127.0.0.1:8640")
    assert 0 < config.storage <= 20 * 10**9


def test_a_directory_that_does_not_exist_yet_has_a_default_quota(tmp_path: Path) -> None:
    assert load_config(tmp_path / "a" / "b", {}, {}).storage > 0


@pytest.mark.parametrize(("source", "named"), [("file", "max_memroy"), ("environment", "MF_MAX_MEMROY"), ("flags", "--max-memroy")])
def test_unknown_keys_are_refused_by_name(tmp_path: Path, source: str, named: str) -> None:
    if source == "file":
        (tmp_path / "config.toml").write_text('max_memroy = "1GB"\n')
    environ = {"MF_MAX_MEMROY": "1GB"} if source == "environment" else {}
    with pytest.raises(BadInput, match=named):
        load_config(tmp_path, {"max_memroy": "1"} if source == "flags" else {}, environ)


@pytest.mark.parametrize(
    "line",
    ['lend = "all"', 'device = "gpu"', 'device = "cuda:x"', "device = 1", "http = 80", 'http = "x"', 'listen = ["/ip4/0.0.0.0/udp/1"]', 
     'label = "a/b"', "json = 3", 'join = ["abc"]', "storage = -1", "lend", 'data_dir = "/x"'],
)  # fmt: skip
def test_wrong_values_are_refused_naming_the_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "config.toml").write_text(line + "\n")
    with pytest.raises(BadInput, match=r"config\.toml"):
        load_config(tmp_path, {}, {})


def test_a_refused_ticket_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load_config(tmp_path, {"join": ("secret-ticket",)}, {})
    assert "secret-ticket" not in str(caught.value)


def test_lists_come_from_an_array_or_separated(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('listen = ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"]\n')
    config = load_config(tmp_path, {}, {"MF_JOIN": "mft1a, mft1b"})
    assert config.listen == ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0")
    assert config.join == ("mft1a", "mft1b")


@given(st.binary(max_size=80))
def test_any_file_gives_a_config_or_a_clear_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_bytes(content)
        message = ""
        try:
            load_config(Path(folder), {}, {})
        except BadInput as error:
            message = error.message
        assert not message or "config.toml" in message


def test_precisions_are_those_the_runtime_knows() -> None:
    from node.config import ENGINES, PRECISIONS
    from runtime import engine_choice, memory

    assert set(PRECISIONS) == set(memory.WIDTHS)
    assert ENGINES == engine_choice.ENGINES
