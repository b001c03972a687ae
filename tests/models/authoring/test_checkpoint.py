"""Checkpoint folders: what is read, and everything that must be refused with one line instead of a traceback."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from models.authoring.checkpoint import INDEX, SINGLE, Checkpoint, weight_files
from models.errors import CheckpointError

# tmp_path is shared by the examples of a test; each writes the same file anew.
DAMAGE = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.tensor([0.5, -0.5]),
    "b.weight": torch.arange(-4.0, 4.0).reshape(2, 4),
}
WHOLE = save(TENSORS)
HEADER = 8 + struct.unpack("<Q", WHOLE[:8])[0]


def read(folder: Path) -> dict[str, Tensor]:
    with Checkpoint(folder) as checkpoint:
        return dict(checkpoint)


def refused(folder: Path) -> str:
    """Why the folder is refused: one line that names something in it, whether on opening or on reading."""
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype is theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def write_index(folder: Path, files: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))


def sharded(folder: Path) -> dict[str, str]:
    """A good checkpoint of two shards; returns its index for tests that spoil it."""
    where = {name: FIRST if name.startswith("a") else SECOND for name in TENSORS}
    for shard in (FIRST, SECOND):
        save_file({name: TENSORS[name] for name, file in where.items() if file == shard}, folder / shard)
    write_index(folder, where)
    return where


# -- what is read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_single_file(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every tensor under its name, in the dtype it is stored in."""
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / SINGLE)
    assert_same(read(tmp_path), tensors)
    assert weight_files(tmp_path) == [tmp_path / SINGLE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sharded_by_index(tmp_path: Path, dtype: torch.dtype) -> None:
    """Shards together are one checkpoint."""
    where = sharded(tmp_path)
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    for shard in (FIRST, SECOND):
        save_file({name: tensors[name] for name, file in where.items() if file == shard}, tmp_path / shard)
    assert_same(read(tmp_path), tensors)
    assert weight_files(tmp_path) == [tmp_path / FIRST, tmp_path / SECOND]


def test_index_of_a_single_file(tmp_path: Path) -> None:
    """An index may send everything to one file."""
    save_file(TENSORS, tmp_path / SINGLE)
    write_index(tmp_path, dict.fromkeys(TENSORS, SINGLE))
    assert_same(read(tmp_path), TENSORS)


def test_mapping(tmp_path: Path) -> None:
    """It counts, lists and knows its tensors; another name is a KeyError, as in any mapping."""
    sharded(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint) == len(TENSORS)
        assert set(checkpoint) == set(TENSORS)
        assert "a.bias" in checkpoint
        assert "c" not in checkpoint
        with pytest.raises(KeyError):
            checkpoint["c"]


@pytest.mark.parametrize("shards", [False, True])
def test_the_hubs_cache_of_links(tmp_path: Path, shards: bool) -> None:
    """Snapshots are links into a folder of blobs, outside their own folder: accepted, they are the reader's own."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    if shards:
        sharded(snapshot)
    else:
        save_file(TENSORS, snapshot / SINGLE)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / f"sha{number}")
        file.symlink_to(Path("..") / ".." / "blobs" / f"sha{number}")
    assert_same(read(snapshot), TENSORS)


# -- damaged files


@pytest.mark.parametrize(
    "length",
    [0, 1, 7, 8, 9, HEADER // 2, HEADER - 1, HEADER, HEADER + 1, len(WHOLE) - 4, len(WHOLE) - 1],
)
def test_truncated_single_file(tmp_path: Path, length: int) -> None:
    """Cut in the length, in the header, between header and data, in the data, before the last byte."""
    (tmp_path / SINGLE).write_bytes(WHOLE[:length])
    assert SINGLE in refused(tmp_path)


@DAMAGE
@given(length=st.integers(0, len(WHOLE) - 1))
def test_truncated_anywhere(tmp_path: Path, length: int) -> None:
    """Whatever the length, a file that is not whole is refused."""
    (tmp_path / SINGLE).write_bytes(WHOLE[:length])
    assert SINGLE in refused(tmp_path)


def test_file_with_more_than_it_declares(tmp_path: Path) -> None:
    """Bytes after the last tensor are not ignored."""
    (tmp_path / SINGLE).write_bytes(WHOLE + b"\0")
    assert SINGLE in refused(tmp_path)


@DAMAGE
@given(content=st.binary(max_size=200))
def test_garbage(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no safetensors file at all."""
    (tmp_path / SINGLE).write_bytes(b"\x13" + content)
    assert SINGLE in refused(tmp_path)


@DAMAGE
@given(at=st.integers(0, HEADER - 1), value=st.integers(0, 255))
def test_damaged_header(tmp_path: Path, at: int, value: int) -> None:
    """A byte of the header changed: refused, or read as what the header now says; never another kind of failure."""
    (tmp_path / SINGLE).write_bytes(WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :])
    message, tensors = "", {}
    try:
        tensors = read(tmp_path)
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message
    assert message or sum(tensor.nbytes for tensor in tensors.values()) == len(WHOLE) - HEADER


@pytest.mark.parametrize("shard", [FIRST, SECOND])
@pytest.mark.parametrize("keep", [0, 20, -1])
def test_truncated_shard(tmp_path: Path, shard: str, keep: int) -> None:
    """The message names the shard that is cut."""
    sharded(tmp_path)
    content = (tmp_path / shard).read_bytes()
    (tmp_path / shard).write_bytes(content[:keep])
    assert str(tmp_path / shard) in refused(tmp_path)


# -- shards and index that do not agree


@pytest.mark.parametrize("shard", [FIRST, SECOND])
def test_missing_shard(tmp_path: Path, shard: str) -> None:
    """A shard that the index names is not there."""
    sharded(tmp_path)
    (tmp_path / shard).unlink()
    assert str(tmp_path / shard) in refused(tmp_path)


def test_shard_that_is_a_dangling_link(tmp_path: Path) -> None:
    """A cache whose blob was deleted counts as a missing shard."""
    sharded(tmp_path)
    (tmp_path / FIRST).unlink()
    (tmp_path / FIRST).symlink_to(tmp_path / "blob")
    assert str(tmp_path / FIRST) in refused(tmp_path)


def test_shard_that_is_a_folder(tmp_path: Path) -> None:
    """So does a folder in a shard's place."""
    sharded(tmp_path)
    (tmp_path / FIRST).unlink()
    (tmp_path / FIRST).mkdir()
    assert str(tmp_path / FIRST) in refused(tmp_path)


def test_listed_tensor_that_no_shard_holds(tmp_path: Path) -> None:
    """The message names the tensor."""
    where = sharded(tmp_path)
    write_index(tmp_path, {**where, "c.weight": FIRST})
    assert "lists c.weight, which no shard holds" in refused(tmp_path)


def test_shard_with_an_unlisted_tensor(tmp_path: Path) -> None:
    """The message names the tensor."""
    where = sharded(tmp_path)
    del where["a.bias"]
    write_index(tmp_path, where)
    assert "a.bias is in a shard but not in" in refused(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    """Nobody can tell which is meant, even if they are equal."""
    sharded(tmp_path)
    save_file({name: TENSORS[name] for name in ("b.weight", "a.bias")}, tmp_path / SECOND)
    assert "a.bias is in two shards" in refused(tmp_path)


def test_tensor_in_another_shard_than_listed(tmp_path: Path) -> None:
    """An index that sends a tensor to the wrong shard does not belong to these files."""
    where = sharded(tmp_path)
    write_index(tmp_path, {**where, "a.bias": SECOND})
    assert "a.bias" in refused(tmp_path)


HOSTILE = [
    "../x.safetensors",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b.safetensors",
    "./x.safetensors",
    "..",
    ".",
    "",
    "C:\\x",
    "C:x.safetensors",
    "..\\x.safetensors",
    "\\\\server\\x.safetensors",
    "x.safetensors\0",
    "\0",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=repr)
def test_hostile_names_in_the_index(tmp_path: Path, hostile: str) -> None:
    """A name that walks out of the folder is refused, though a good file is there, and nothing of it is opened."""
    folder = tmp_path / "checkpoint"
    (folder / "a").mkdir(parents=True)
    for place in (tmp_path / "x.safetensors", folder / "x.safetensors", folder / "a" / "b.safetensors"):
        save_file({"c.weight": torch.ones(1)}, place)
    where = sharded(folder)
    write_index(folder, {**where, "c.weight": hostile})
    message = refused(folder)
    assert f"sends c.weight to {hostile!r}" in message
    assert "do not trust" in message
    with pytest.raises(CheckpointError, match="outside the folder"):
        weight_files(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'"model.safetensors"',
        b'{"weight_map": null}',
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": "model.safetensors"}',
        b'{"weight_map": {"a.weight": null}}',
        b'{"weight_map": {"a.weight": 1}}',
        b'{"weight_map": {"a.weight": ["model.safetensors"]}}',
    ],
    ids=repr,
)
def test_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    """Not JSON, not an object, no map, an empty map, names that are no text: the index or the file is named."""
    save_file(TENSORS, tmp_path / SINGLE)
    (tmp_path / INDEX).write_bytes(content)
    assert refused(tmp_path)


def deep(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"[" * 100_000)


def long_name(folder: Path) -> None:
    write_index(folder, {"a.weight": "x" * 300 + ".safetensors"})


def line_break(folder: Path) -> None:
    write_index(folder, {"a.weight": "x\n.safetensors"})


@pytest.mark.parametrize(
    "spoil",
    [
        deep,
        long_name,
        line_break,
    ],
)
def test_index_made_to_break_its_reader(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """Nesting beyond the parser's depth, names beyond the file system's, names that break the message's line."""
    spoil(tmp_path)
    assert refused(tmp_path)


def test_tensor_name_that_breaks_the_line(tmp_path: Path) -> None:
    """A message stays one line whatever the file calls its tensors."""
    where = sharded(tmp_path)
    write_index(tmp_path, {**where, "c\nd": FIRST})
    assert refused(tmp_path)


# -- nothing to read


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "pytorch_model.bin.index.json"]
)
def test_pickles_are_never_read(tmp_path: Path, name: str) -> None:
    """A folder with pickles only is refused, and says so; the pickle's code does not run."""
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    assert "pickles never are" in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickle_under_a_safetensors_name(tmp_path: Path) -> None:
    """The name does not make it one; the pickle's code does not run."""
    (tmp_path / SINGLE).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    assert SINGLE in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_empty_or_absent_folder(tmp_path: Path, exists: bool) -> None:
    """Nothing there names what was looked for."""
    folder = tmp_path if exists else tmp_path / "absent"
    message = refused(folder)
    assert SINGLE in message
    assert INDEX in message


def test_shards_without_an_index(tmp_path: Path) -> None:
    """Shards alone cannot be known to be complete."""
    sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    assert INDEX in refused(tmp_path)


def test_file_deleted_while_open(tmp_path: Path) -> None:
    """An open checkpoint stays readable when a cleaner removes its file."""
    save_file(TENSORS, tmp_path / SINGLE)
    with Checkpoint(tmp_path) as checkpoint:
        (tmp_path / SINGLE).unlink()
        assert torch.equal(checkpoint["a.weight"], TENSORS["a.weight"])
