"""What is written is read back; the same examples give the same bytes; nothing half-written or damaged passes."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanjax.data.cache import (
    CachedMixture,
    CachedTask,
    CacheError,
    Example,
    decode_record,
    encode_record,
    feature_statistics,
    read_manifest,
    task_folder,
)
from flanjax.data.cache_writer import up_to_date, write_mixture, write_split
from flanjax.data.vocabularies import Vocabulary

REMEDY = r"python -m flanjax\.materialize --mixture=\w+ --cache_dir="


def write(cache: Path, count: int = 20, **options: object) -> None:
    examples = (
        Example(
            inputs=np.arange(2, 3 + index, dtype=np.int32),
            targets=np.array([index + 2, 1], dtype=np.int32),
            text={"inputs": f"in {index}", "targets": "out", "references": ["out", "oüt"], "id": str(index)},
        )
        for index in range(count)
    )
    settings = {"vocabulary_id": "v", "fingerprint": "f", "seed": 3, "shard_examples": 6, **options}
    write_split(cache, "task", "validation", examples, **settings)


def open_task(cache: Path) -> CachedTask:
    return CachedTask.open(cache, "task", "validation", mixture="mix")


tokens = st.lists(st.integers(0, 2**31 - 1), max_size=20).map(lambda ids: np.array(ids, dtype=np.int32))
texts = st.none() | st.fixed_dictionaries({"inputs": st.text(), "references": st.lists(st.text(), max_size=3)})


@settings(max_examples=50, deadline=None)
@given(inputs=tokens, targets=tokens, text=texts, data=st.data())
def test_a_record_round_trips(inputs: np.ndarray, targets: np.ndarray, text: dict | None, data: st.DataObject) -> None:
    count = len(targets)
    weights = data.draw(st.none() | st.lists(st.integers(0, 1), min_size=count, max_size=count).map(np.array))
    example = Example(inputs=inputs, targets=targets, target_weights=weights, text=text)
    decoded = decode_record(encode_record(example))
    np.testing.assert_array_equal(decoded.inputs, inputs)
    np.testing.assert_array_equal(decoded.targets, targets)
    np.testing.assert_array_equal(decoded.target_weights, weights)
    assert decoded.text == text
    assert encode_record(decoded) == encode_record(example)


def test_a_record_without_weights_is_what_it_was_before_there_were_any() -> None:
    record = encode_record(Example(inputs=np.array([5, 1]), targets=np.array([7, 1])))
    assert msgpack.unpackb(record) == {"inputs": b"\5\0\0\0\1\0\0\0", "targets": b"\7\0\0\0\1\0\0\0"}


@pytest.mark.parametrize("weights", [[1], [1, 2], [0.5, 1], [[1, 1]]])
def test_weights_that_are_no_choice_of_target_tokens_are_refused(weights: list) -> None:
    example = Example(inputs=np.array([5, 1]), targets=np.array([7, 1]), target_weights=np.array(weights))
    with pytest.raises(CacheError, match="an example with 2 target tokens: give one for each token"):
        encode_record(example)


def test_the_histogram_counts_by_powers_of_two() -> None:
    found = feature_statistics(np.array([1, 3, 4, 6, 64, 65], dtype=np.uint32))
    assert found.histogram == {"1": 1, "4": 2, "8": 1, "64": 1, "128": 1}
    assert (found.tokens, found.max) == (143, 65)


def test_reads_back_any_indices_in_order_across_shards(tmp_path: Path) -> None:
    write(tmp_path)
    task = open_task(tmp_path)
    assert len(task) == 20
    np.testing.assert_array_equal(task.lengths[:, 0], np.arange(1, 21))
    assert [shard.examples for shard in task.manifest.shards] == [6, 6, 6, 2]
    indices = [19, 0, 5, 6, 6, 13, 12, 18]
    found = task.read(indices)
    assert [example.targets[0] - 2 for example in found] == indices
    assert found[0].text == {"inputs": "in 19", "targets": "out", "references": ["out", "oüt"], "id": "19"}
    assert task.read([]) == []
    task.verify()
    with pytest.raises(IndexError, match="20 examples"):
        task.read([20])


def test_a_split_without_examples(tmp_path: Path) -> None:
    write(tmp_path, count=0)
    assert len(open_task(tmp_path)) == 0
    assert open_task(tmp_path).lengths.shape == (0, 2)


def test_the_manifest_is_the_contract(tmp_path: Path) -> None:
    write(tmp_path, count=7, counters={"dropped_empty_targets": 2, "skipped_bad_rows": 1})
    folder = task_folder(tmp_path, "task", "validation")
    content = json.loads((folder / "manifest.json").read_text())
    shards = content.pop("shards")
    assert content == {
        "format": 1,
        "task": "task",
        "split": "validation",
        "fingerprint": "f",
        "seed": 3,
        "vocabulary": "v",
        "examples": 7,
        "features": {
            "inputs": {"tokens": 28, "max": 7, "histogram": {"1": 1, "2": 1, "4": 2, "8": 3}},
            "targets": {"tokens": 14, "max": 2, "histogram": {"2": 7}},
        },
        "dropped_empty_targets": 2,
        "skipped_bad_rows": 1,
    }
    names = ["data-00000-of-00002.array_record", "data-00001-of-00002.array_record"]
    assert [shard["file"] for shard in shards] == names
    assert sorted(path.name for path in folder.iterdir()) == [*names, "lengths.npy", "manifest.json"]


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, count=200, shard_examples=64)
    first, second = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("a", "b")
    )
    assert first == second
    assert len(first) == 6


def test_writing_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path, count=20)
    older = open_task(tmp_path)
    older.read([0])
    write(tmp_path, count=5)
    assert len(open_task(tmp_path)) == 5
    assert [path.name for path in (tmp_path / "tasks" / "task").iterdir()] == ["validation"]


def test_a_split_written_again_is_not_read_as_the_one_that_was_opened(tmp_path: Path) -> None:
    write(tmp_path)
    older = open_task(tmp_path)
    assert older.read([0])[0].targets[0] == 2  # of a shard that stays open
    write(tmp_path)
    assert older.read([6])[0].targets[0] == 8  # the same bytes again are nothing else
    write(tmp_path, fingerprint="g")
    assert older.read([0])[0].targets[0] == 2
    with pytest.raises(CacheError, match=r"task.validation was written again while it was being read"):
        older.read([12])
    assert open_task(tmp_path).read([12])[0].targets[0] == 14


def test_examples_that_fail_leave_the_cache_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, count=20)

    def failing() -> Iterator[Example]:
        yield Example(inputs=np.array([1]), targets=np.array([1]))
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        write_split(tmp_path, "task", "validation", failing(), vocabulary_id="v", fingerprint="g", seed=0)
    assert open_task(tmp_path).manifest.fingerprint == "f"
    assert [path.name for path in (tmp_path / "tasks" / "task").iterdir()] == ["validation"]


def test_a_killed_writer_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    script = f"""
        import os, signal, numpy as np
        from flanjax.data.cache import Example
        from flanjax.data.cache_writer import write_split
        def examples():
            for index in range(1000):
                yield Example(inputs=np.ones(9), targets=np.ones(2))
            os.kill(os.getpid(), signal.SIGKILL)
        write_split({str(tmp_path)!r}, "task", "validation", examples(), vocabulary_id="v", fingerprint="f", seed=0,
                    shard_examples=300)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = tmp_path / "tasks" / "task" / ".validation.partial"
    assert len(list(left.iterdir())) > 2, "the writer was to be killed while writing"
    with pytest.raises(CacheError, match=REMEDY):
        open_task(tmp_path)
    assert not up_to_date(tmp_path, "task", "validation", "f")
    write(tmp_path)
    assert len(open_task(tmp_path)) == 20
    assert [path.name for path in (tmp_path / "tasks" / "task").iterdir()] == ["validation"]


def test_two_writers_of_one_split(tmp_path: Path) -> None:
    def examples() -> Iterator[Example]:
        with pytest.raises(CacheError, match="another process is writing"):
            write(tmp_path)
        yield Example(inputs=np.array([1]), targets=np.array([1]))

    write_split(tmp_path, "task", "validation", examples(), vocabulary_id="v", fingerprint="f", seed=0)
    assert len(open_task(tmp_path)) == 1


def test_a_full_disk(tmp_path: Path) -> None:
    examples = (Example(inputs=np.frombuffer(os.urandom(4000), "<i4"), targets=np.array([1])) for _ in range(3000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(CacheError, match=r"cannot write .*free some space"):
            write_split(tmp_path, "task", "validation", examples, vocabulary_id="v", fingerprint="f", seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "tasks" / "task").iterdir())


def damaged(folder: Path, how: str) -> None:
    shard = folder / "data-00001-of-00004.array_record"
    manifest = folder / "manifest.json"
    if how == "shard missing":
        shard.unlink()
    elif how == "shard truncated":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif how == "shard cut at its end":
        shard.write_bytes(shard.read_bytes()[:-9])
    elif how == "another shard":
        shard.write_bytes((folder / "data-00003-of-00004.array_record").read_bytes())
    elif how == "lengths missing":
        (folder / "lengths.npy").unlink()
    elif how == "lengths truncated":
        (folder / "lengths.npy").write_bytes((folder / "lengths.npy").read_bytes()[:-8])
    elif how == "lengths of other data":
        np.save(folder / "lengths.npy", np.ones((19, 2), dtype=np.uint32))
    elif how == "manifest missing":
        manifest.unlink()
    elif how == "manifest cut":
        manifest.write_text(manifest.read_text()[:100])
    elif how == "another format":
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    elif how == "manifest does not add up":
        manifest.write_text(manifest.read_text().replace('"examples": 20', '"examples": 21'))


@pytest.mark.parametrize(
    ("how", "place"),
    [
        ("shard missing", r"data-00001-of-00004\.array_record is missing"),
        ("shard truncated", r"data-00001-of-00004\.array_record is truncated"),
        ("shard cut at its end", r"data-00001-of-00004\.array_record is truncated"),
        ("another shard", r"data-00001-of-00004\.array_record holds 2 examples, its manifest says 6"),
        ("lengths missing", r"lengths\.npy is missing"),
        ("lengths truncated", r"lengths\.npy is missing or truncated"),
        ("lengths of other data", r"lengths\.npy has shape \(19, 2\)"),
        ("manifest missing", "never finished"),
        ("manifest cut", r"manifest\.json is not a manifest"),
        ("another format", "format 2, this flanjax reads format 1"),
        ("manifest does not add up", r"(manifest|lengths)"),
    ],
)
def test_damage_is_found_on_opening(tmp_path: Path, how: str, place: str) -> None:
    write(tmp_path)
    damaged(task_folder(tmp_path, "task", "validation"), how)
    with pytest.raises(CacheError, match=place) as caught:
        open_task(tmp_path)
    assert f"python -m flanjax.materialize --mixture=mix --cache_dir={tmp_path}" in str(caught.value)
    assert not up_to_date(tmp_path, "task", "validation", "f")


def test_a_flipped_bit_is_found_on_reading(tmp_path: Path) -> None:
    write(tmp_path)
    shard = task_folder(tmp_path, "task", "validation") / "data-00001-of-00004.array_record"
    content = bytearray(shard.read_bytes())
    # The records follow a short signature; the far end of the file is its index and padding.
    content[200] ^= 1
    shard.write_bytes(content)
    task = open_task(tmp_path)
    assert len(task.read([0, 19])) == 2
    with pytest.raises(CacheError, match=rf"data-00001-of-00004\.array_record is damaged .*{REMEDY}"):
        task.read(range(6, 12))
    with pytest.raises(CacheError, match="sha256 differs"):
        task.verify()
    assert not up_to_date(tmp_path, "task", "validation", "f")


def test_a_flipped_bit_of_the_length_index(tmp_path: Path) -> None:
    write(tmp_path)
    lengths = task_folder(tmp_path, "task", "validation") / "lengths.npy"
    lengths.write_bytes(lengths.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CacheError, match=r"lengths\.npy is damaged \(column targets\)"):
        open_task(tmp_path).verify()


def test_up_to_date_is_of_the_fingerprint(tmp_path: Path) -> None:
    assert not up_to_date(tmp_path, "task", "validation", "f")
    write(tmp_path)
    assert up_to_date(tmp_path, "task", "validation", "f")
    assert not up_to_date(tmp_path, "task", "validation", "another")
    assert read_manifest(tmp_path) is None


def test_a_mixture_opens_with_tasks_rates_and_vocabulary(
    make_cache: Callable[..., Path], tiny_vocabulary: Vocabulary
) -> None:
    cache = make_cache({"one": [(3, 2)], "two": [(4, 2)] * 9}, rates={"one": 0.5})
    mixture = CachedMixture.open(cache, "mix", "train")
    assert [task.name for task in mixture.tasks] == ["one", "two"]
    assert mixture.rates == [0.5, None]
    assert mixture.vocabulary.identity == tiny_vocabulary.identity
    assert mixture.vocabulary.encode("alpha") == tiny_vocabulary.encode("alpha")


def test_more_shards_than_may_stay_open(make_cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flanjax.data.cache._MAX_OPEN_SHARDS", 3)
    task = CachedMixture.open(make_cache({"one": [(3, 2)] * 50}, shard_examples=5), "mix", "train").tasks[0]
    for _ in range(2):
        assert [example.inputs[0] - 2 for example in task.read(range(50))] == list(range(50))


@pytest.mark.parametrize("mapped", [False, True])
def test_tasks_that_are_open_keep_no_descriptor_unless_they_are_large(
    make_cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    monkeypatch.setattr("flanjax.data.cache._MAPPED_EXAMPLES", 50 if mapped else 51)
    cache, descriptors = make_cache({"one": [(3, 2)] * 50}), Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    mixtures = [CachedMixture.open(cache, "mix", "train") for _ in range(20)]
    assert len(list(descriptors.iterdir())) - before == (20 if mapped else 0)
    lengths = [mixture.tasks[0].lengths for mixture in mixtures]
    assert all(np.array_equal(each, lengths[0]) for each in lengths)
    assert lengths[0].shape == (50, 2)


def test_mixtures_that_cannot_be_opened(make_cache: Callable[..., Path], tiny_vocabulary: Vocabulary) -> None:
    cache = make_cache({"one": [(3, 2)]})
    with pytest.raises(CacheError, match=rf"'mixx' is not in the cache.*did you mean 'mix'.*{REMEDY}"):
        CachedMixture.open(cache, "mixx", "train")
    with pytest.raises(CacheError, match=r"empty: .* no task with a split 'test'"):
        CachedMixture.open(cache, "mix", "test")
    (cache / "vocabularies" / tiny_vocabulary.identity / "spiece.model").unlink()
    with pytest.raises(CacheError, match=rf"spiece\.model.*{REMEDY}"):
        CachedMixture.open(cache, "mix", "train")
    (cache / "mixtures" / "mix.json").write_text('{"format": 7}')
    with pytest.raises(CacheError, match=rf"mix\.json.*format 7.*{REMEDY}"):
        CachedMixture.open(cache, "mix", "train")


def test_a_task_of_another_vocabulary(make_cache: Callable[..., Path], tiny_vocabulary: Vocabulary) -> None:
    cache = make_cache({"one": [(3, 2)]})
    entries = [{"task": "task", "rate": 1.0, "splits": {"validation": "f"}}]
    write(cache)
    write_mixture(cache, "mix", tiny_vocabulary, seed=0, tasks=entries)
    with pytest.raises(CacheError, match="was tokenised with vocabulary v"):
        CachedMixture.open(cache, "mix", "validation")


def test_names_stay_in_the_cache(tmp_path: Path) -> None:
    for name in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(CacheError, match="cannot name a folder"):
            task_folder(tmp_path, name, "train")
    assert task_folder(tmp_path, "flan:v2.1", "train").name == "train"
