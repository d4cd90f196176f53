"""Every shipped module describes itself without data, and a name, a path or an address brings what it means."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from flanjax import doors
from flanjax.data.cache import CachedMixture
from flanjax.data.catalog import CatalogError, find, is_path, module_of, resolve, resolve_all, shipped
from flanjax.data.records import RecordsError
from flanjax.data.schemas import SchemaError
from flanjax.data.tasks import DATA_DIR_VARIABLE, Family
from flanjax.data.vocabularies import Vocabulary
from flanjax.materialize import main
from flanjax.run import CONFIGURABLES, Run, with_modules

OWN = "flanjax.tasks.own"
REVIEWS = "".join(json.dumps({"inputs": f"Is {n} even?", "targets": str(n % 2 == 0)}) + "\n" for n in range(8))


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    (tmp_path / "reviews.jsonl").write_text(REVIEWS)
    return tmp_path / "reviews.jsonl"


@pytest.fixture
def data_dir(tmp_path: Path, test_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of datasets, with a published sample of Alpaca in its place."""
    folder = tmp_path / "datasets"
    (folder / "alpaca").mkdir(parents=True)
    (folder / "alpaca" / "alpaca_data.json").symlink_to(test_data / "alpaca" / "alpaca_tiny.json")
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(folder))
    shipped.cache_clear()
    yield folder
    shipped.cache_clear()


def test_every_shipped_module_describes_a_family() -> None:
    files = (Path(__file__).resolve().parents[2] / "tasks").glob("*.py")
    assert {name.rpartition(".")[2] for name in shipped()} == {
        file.stem for file in files if "\ndef family(" in file.read_text()
    }
    for family in shipped().values():
        assert isinstance(family, Family)


def test_describing_needs_no_data_and_reads_none() -> None:
    code = (
        "import builtins, sys\n"
        "from flanjax.data.catalog import shipped\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "families = shipped()\n"
        "print(len(families), [name for name in opened if 'nowhere' in name])"
    )
    environment = {**os.environ, DATA_DIR_VARIABLE: "/nowhere/at/all"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{len(shipped())} []\n"


def repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def test_names_are_unique_over_all_families() -> None:
    families = shipped().values()
    assert repeated(name for family in families for name in family.mixtures) == []
    assert repeated(task.name for family in families for task in family.tasks) == []
    assert repeated(dataset.name for family in families for dataset in family.datasets) == []


@pytest.mark.parametrize("module", sorted(shipped()))
def test_a_family_is_whole(module: str) -> None:
    family = shipped()[module]
    tasks = {task.name: task for task in family.tasks}
    for name, rates in family.mixtures.items():
        assert rates.keys() <= tasks.keys(), name
        assert all(rate is None or rate > 0 for rate in rates.values())
    for task in tasks.values():
        assert task.splits
        assert task.examples.keys() <= set(task.splits)
        assert is_path(task.name) is False
    for dataset in family.datasets:
        assert all((dataset.title, dataset.licence, dataset.paper, dataset.page)), dataset.name
        assert dataset.page.startswith("https://")
        assert dataset.tested_on
        for download in dataset.downloads:
            assert download.url.startswith(("https://", "hf://", "gs://"))
            assert not Path(download.file).is_absolute()


def test_a_name_is_a_mixture_a_task_or_a_dataset(data_dir: Path) -> None:
    for module, family in shipped().items():
        for name, rates in family.mixtures.items():
            found = find(name)
            assert (found.module, dict(found.rates)) == (module, dict(rates))
            assert module_of(name) == module
        for task in family.tasks:
            assert find(task.name).module == module
            assert module_of(task.name) == module
        for dataset in family.datasets:
            assert find(dataset.name).module == module
    assert find("baize_quora").rates == {"baize_quora": 1.0}
    assert [task.name for task in find("massive").tasks][:2] == ["slot_tagging_af_za", "slot_tagging_am_et"]
    assert module_of("nothing") is None


def test_options_of_a_module_count(tmp_path: Path) -> None:
    entry = find("demo", {"flanjax.tasks.demo": {"train_examples": 7}})
    assert {task.examples["train"] for task in entry.tasks} == {7}
    assert find("demo").tasks[0].examples["train"] == 1800


@pytest.mark.parametrize(("name", "near"), [("alpacca", "alpaca"), ("super_natural_instruction", "super_natural")])
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(CatalogError, match=rf"no mixture, task or dataset {name!r} .did you mean '{near}"):
        find(name)


@pytest.mark.parametrize("name", ["alpaca", "task1_a.b", "flan2021:zero", "reviews"])
def test_a_name_is_no_path(name: str) -> None:
    assert resolve(name, {"m": {}}) == (name, {"m": {}})


def test_a_path_is_a_task_of_its_own(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reviews.parent)
    with fsspec.open("memory://catalog/reviews.jsonl", "w") as stream:
        stream.write(REVIEWS)
    for path in (
        str(reviews),
        "reviews.jsonl",
        "./reviews.jsonl",
        f"{reviews.parent}/",
        "memory://catalog/reviews.jsonl",
    ):
        name, modules = resolve(path, {"m": {}})
        assert modules == {"m": {}, OWN: {"path": path}}
        assert name == ("reviews" if path.endswith(".jsonl") else find(path).name)
        (task,) = find(path).tasks
        assert len(list(task.source["train"](0))) == 7
    assert resolve("reviews.jsonl", {OWN: {"name": "mine", "validation": 0}}) == (
        "mine",
        {OWN: {"name": "mine", "validation": 0, "path": "reviews.jsonl"}},
    )


def test_a_path_that_means_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"nowhere\.jsonl: there is no such file"):
        resolve("nowhere.jsonl", {})
    (tmp_path / "odd.jsonl").write_text('{"left": "a", "right": "b"}\n')
    with pytest.raises(SchemaError, match=r"odd\.jsonl:1"):
        find(str(tmp_path / "odd.jsonl"))


def test_several_mixtures_bring_their_modules(tmp_path: Path, reviews: Path) -> None:
    names, modules = resolve_all(["alpaca", "demo_heldout", str(reviews)], {}, tmp_path)
    assert names == ["alpaca", "demo_heldout", "reviews"]
    assert modules == {"flanjax.tasks.alpaca": {}, "flanjax.tasks.demo": {}, OWN: {"path": str(reviews)}}
    given: Mapping[str, Mapping[str, Any]] = {"flanjax.tasks.alpaca": {"style": "plain"}}
    assert resolve_all(["alpaca", "demo"], given, tmp_path) == (["alpaca", "demo"], given)


def test_a_second_path_is_refused_with_what_to_do(tmp_path: Path, reviews: Path) -> None:
    assert resolve_all([str(reviews), str(reviews)], {}, tmp_path)[0] == ["reviews", "reviews"]
    with pytest.raises(CatalogError, match=r"reviews\.jsonl and other\.jsonl: .* one folder, as train.jsonl and valid"):
        resolve_all([str(reviews), "other.jsonl"], {}, tmp_path)


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the materialising door sets it, for the time of a test."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def run_of(*flags: str) -> Run:
    """The run that a command line means, up to opening its parts."""
    _, sources = doors.parse_gin_flags(doors.gin_parser("flanjax.train", ""), ["--gin_file=finetune.gin", *flags])
    doors.configure(sources, CONFIGURABLES)
    run = doors.build(Run)
    assert isinstance(run, Run)
    return with_modules(run)


def flags(tmp_path: Path, mixture: str) -> list[str]:
    given = {"MIXTURE": mixture, "MODEL_DIR": tmp_path / "run", "INIT_FROM": "model", "CACHE_DIR": tmp_path / "cache"}
    return [f"--gin.{name}={value}" for name, value in given.items()]


def test_a_run_may_name_a_file(tmp_path: Path, reviews: Path) -> None:
    run = run_of(*flags(tmp_path, str(reviews)), "--gin.EVAL_MIXTURES=demo_heldout")
    assert run.data.mixture == "reviews"
    assert run.evaluation.mixtures == ("demo_heldout",)
    assert run.tasks == {OWN: {"path": str(reviews)}, "flanjax.tasks.demo": {}}


def test_what_a_run_names_is_materialised(
    tmp_path: Path, data_dir: Path, reviews: Path, t5_spiece: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mixture, name, sizes in ((str(reviews), "reviews", (7, 1)), ("alpaca", "alpaca", (99, 1))):
        gin = ["--gin_file=finetune.gin", *flags(tmp_path, mixture), f"--gin.VOCABULARY={t5_spiece}", "--workers=1"]
        assert main(gin) == 0
        assert f"materialized {name}: {sum(sizes)} examples" in capsys.readouterr().out
        for split, size in zip(("train", "validation"), sizes, strict=True):
            assert [len(task) for task in CachedMixture.open(tmp_path / "cache", name, split).tasks] == [size]
        assert main(gin) == 0
        assert "0 of 2 splits written, the others were there" in capsys.readouterr().out
    # Without modules, training takes what the cache has as it was written.
    assert run_of(*flags(tmp_path, "alpaca")).tasks == {}


def test_materialize_takes_a_file(
    tmp_path: Path, reviews: Path, t5_spiece: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"--cache_dir={tmp_path / 'cache'}", f"--vocabulary={t5_spiece}", "--workers=1"]
    assert main([f"--mixture={reviews}", *where]) == 0
    assert capsys.readouterr().out.startswith("reviews: own data: 1 file, ")
    (task,) = CachedMixture.open(tmp_path / "cache", "reviews", "train").tasks
    decode = Vocabulary.from_file(t5_spiece).decode
    examples = [(decode(one.inputs[:-1]), decode(one.targets[:-1])) for one in task.read(range(7))]
    assert examples == [(f"Is {n} even?", str(n % 2 == 0)) for n in range(1, 8)]
    # Options are for the module that the mixture comes from.
    assert main([f"--mixture={reviews}", "--option=validation=0", *where]) == 0
    assert "materialized reviews: 8 examples" in capsys.readouterr().out
    assert main([f"--mixture={reviews}", "--option=validatoin=0", *where]) == 2
    assert "did you mean 'validation'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--gin_file=finetune.gin", "--option=validation=0"])
    assert "--option goes with --tasks or --mixture" in capsys.readouterr().err
    assert main(["--mixture=nowhere.jsonl", *where]) == 2
    assert "error: nowhere.jsonl: there is no such file" in capsys.readouterr().err
