"""Win rates of pairwise judgements, against AlpacaEval's published figure."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanjax.data.sources import BadRow
from flanjax.evaluation.benchmark import BenchmarkError
from flanjax.evaluation.preferences import answer_length, read_judgements, win_rate


def test_the_published_win_rate_of_alpaca_7b(test_data):
    file = test_data / "alpaca_eval" / "alpaca-7b" / "alpaca_eval_gpt4" / "annotations.json.gz"
    found = win_rate(read_judgements(file, "alpaca-7b"))
    assert (round(found.percent, 2), round(found.error, 2), found.judged) == (26.46, 1.54, 805)
    other = win_rate(read_judgements(file, "text_davinci_003"))
    assert (other.percent, other.error) == (pytest.approx(100 - found.percent), pytest.approx(found.error))


def test_the_published_lengths_of_answers(test_data):
    for model, characters in {"alpaca-7b": 396, "text_davinci_003": 307}.items():
        assert answer_length(test_data / "alpaca_eval" / model / "model_outputs.json.gz") == characters


@given(wins=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2))
def test_the_other_side_has_the_rest(wins):
    one, two = win_rate(wins), win_rate([1 - win for win in wins])
    assert one.percent + two.percent == pytest.approx(100)
    assert one.error == pytest.approx(two.error)


def test_judgements_that_are_none(tmp_path):
    file = tmp_path / "annotations.json"
    row = {"generator_1": "a", "generator_2": "b", "preference": 1}
    for wrong, message in (
        (row | {"preference": 3}, "must be 0, 1 or 2"),
        (row | {"preference": None}, "must be 0, 1 or 2"),
        (row | {"generator_1": "b"}, "b against b is no judgement of 'b'"),
        ({"preference": 1}, "field 'generator_1' is missing"),
    ):
        file.write_text(json.dumps([row, wrong]))
        with pytest.raises(BadRow, match=rf"annotations.json:1: .*{message}"):
            list(read_judgements(file, "b"))
    file.write_text(json.dumps([row]))
    assert list(read_judgements(file, "a")) == [1.0]
    assert list(read_judgements(file, "b")) == [0.0]
    with pytest.raises(BenchmarkError, match="at least two judgements"):
        win_rate([1.0])
    with pytest.raises(BadRow, match=r"annotations.json:1: field 'output' is missing"):
        answer_length(file)
