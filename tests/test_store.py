"""Stages on disk: whole or absent, built once, and everything read is verified."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pnapo_bench import atomic, store
from pnapo_bench.errors import UserError


def part(folder: Path) -> dict[str, Any]:
    """Builds a stage of one file."""
    atomic.write_text(folder / "part.parquet", "content")
    return {"rows": 1}


def one_line(error: pytest.ExceptionInfo[UserError], *expected: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for words in expected:
        assert words in text


def test_a_stage_is_built_once(tmp_path: Path) -> None:
    calls = []

    def build(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        return part(folder)

    first = store.stage(tmp_path, "things", {"a": 1}, build)
    assert store.stage(tmp_path, "things", {"a": 1}, build) == first
    assert calls == [first]
    assert store.manifest(first, "things") == {
        "kind": "things",
        "inputs": {"schema": store.SCHEMA, "a": 1},
        # printf content | sha256sum
        "files": {"part.parquet": "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"},
        "rows": 1,
    }


def test_other_inputs_have_another_folder(tmp_path: Path) -> None:
    inputs: list[dict[str, Any]] = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": 1, "b": None}, {"a": 1.5}, {"a": {"c": 1}}]
    folders = [store.stage(tmp_path, "things", one, part) for one in inputs]
    assert len(set(folders)) == len(inputs)
    assert store.stage(tmp_path, "others", {"a": 1}, part) not in folders


def test_a_key_does_not_depend_on_the_order_of_its_inputs() -> None:
    assert store.key_of({"a": 1, "b": 2}) == store.key_of({"b": 2, "a": 1})
    assert store.key_of({"a": 1, "b": 2}) != store.key_of({"a": 2, "b": 1})


def test_a_stage_killed_in_the_middle_is_continued(tmp_path: Path) -> None:
    built = []

    def build(folder: Path, die: bool) -> dict[str, Any]:
        for name in ("one.parquet", "two.parquet"):
            if not (folder / name).is_file():
                if die and name == "two.parquet":
                    raise KeyboardInterrupt
                built.append(name)
                atomic.write_text(folder / name, name)
        return {}

    with pytest.raises(KeyboardInterrupt):
        store.stage(tmp_path, "things", {}, lambda folder: build(folder, True))
    (folder,) = (tmp_path / "things").iterdir()
    with pytest.raises(UserError) as error:
        store.manifest(folder, "things")
    one_line(error, "expected a complete things folder", str(folder), "repeat the command")
    assert store.stage(tmp_path, "things", {}, lambda folder: build(folder, False)) == folder
    assert built == ["one.parquet", "two.parquet"]  # the first part was kept
    assert set(store.manifest(folder, "things")["files"]) == {"one.parquet", "two.parquet"}


def test_two_at_once_build_once(tmp_path: Path) -> None:
    calls = []
    ready = threading.Barrier(2)

    def build(folder: Path) -> dict[str, Any]:
        calls.append(threading.get_ident())
        time.sleep(0.2)  # the other one is waiting by now
        return part(folder)

    def work() -> None:
        ready.wait()
        folder = store.stage(tmp_path, "things", {}, build)
        found.append(store.manifest(folder, "things")["rows"])  # whoever returns finds it complete

    found: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found == [1, 1]


def test_a_file_is_compared_with_its_hash(tmp_path: Path) -> None:
    folder = store.stage(tmp_path, "things", {}, part)
    files = store.manifest(folder, "things")["files"]
    path = store.checked(folder, "part.parquet", files)
    assert path.read_text() == "content"

    path.write_text("Content")
    with pytest.raises(UserError) as error:
        store.checked(folder, "part.parquet", files)
    one_line(error, str(path), "is corrupted", f"delete {folder}")

    path.unlink()
    with pytest.raises(UserError) as error:
        store.checked(folder, "part.parquet", files)
    one_line(error, str(path), "is missing", f"delete {folder}")

    (folder / "stranger.parquet").write_text("content")
    with pytest.raises(UserError, match="corrupted"):
        store.checked(folder, "stranger.parquet", files)


def test_a_manifest_of_another_kind_or_cut_short(tmp_path: Path) -> None:
    folder = store.stage(tmp_path, "things", {}, part)
    with pytest.raises(UserError) as error:
        store.manifest(folder, "pairs")
    one_line(error, "expected a pairs folder", str(folder), "'things'")

    (folder / "manifest.json").write_text('{"kind": "thi')
    with pytest.raises(UserError) as error:
        store.manifest(folder, "things")
    one_line(error, "manifest.json", "not valid JSON", f"delete {folder}")


def test_a_replaced_file_is_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    atomic.write_json(path, {"a": 1})
    atomic.write_json(path, {"ä": [2]})
    assert json.loads(path.read_text()) == {"ä": [2]}
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        assert path.read_text() == "old"  # not touched before the new one is whole
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        atomic.write_with(path, half)
    with pytest.raises(FileNotFoundError):
        atomic.write_with(path, lambda temporary: None)  # a writer that wrote nothing
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(path, float("nan"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
