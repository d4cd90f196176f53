"""Code Alpaca, in Alpaca's form."""

from flanjax.tasks.code import FILE, family

RECORD = {"instruction": "Sort it.", "input": "[2, 1]", "output": "sorted([2, 1])"}


def test_a_row_is_in_alpacas_prompt_or_plain(written, texts, tmp_path):
    written(tmp_path / FILE, [RECORD])
    (alpaca,) = texts(family(str(tmp_path)).tasks[0], "validation")
    assert alpaca.inputs.endswith("### Instruction:\nSort it.\n\n### Input:\n[2, 1]\n\n### Response:")
    (plain,) = texts(family(str(tmp_path), style="plain").tasks[0], "validation")
    assert (plain.inputs, plain.targets) == ("Sort it.\n\n[2, 1]", "sorted([2, 1])")


def test_any_row_gives_text_or_an_error_with_its_place(fuzzed, tmp_path):
    fuzzed(family(str(tmp_path)).tasks[0], "validation", tmp_path / FILE, RECORD)
