"""Beam search finds what transformers finds, whatever else is in the batch."""

import json

import numpy as np
import pytest

import flanjax
from flanjax.generation.batches import PAD_ID
from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.generate import beam_search, generate
from flanjax.interchange.hf_t5 import read_hf_t5
from flanjax.interchange.stored import in_memory
from flanjax.models.config import Compute
from tests.generation.conftest import EOS, INPUTS, Pair

LIMIT = 12
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"early_stopping": True},
        {"early_stopping": "never", "length_penalty": 0.6},
        {"length_penalty": 0.0},
        {"length_penalty": -1.0, "num_samples": 3},
        {"repetition_penalty": 1.5},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_token_for_token_as_transformers(pairs, kind, options):
    pair = pairs[kind]
    theirs = {("num_return_sequences" if name == "num_samples" else name): x for name, x in options.items()}
    wanted = pair.transformers_answers(INPUTS, num_beams=3, max_new_tokens=LIMIT, **theirs)
    assert {len(ids) for ids in wanted} != {LIMIT}, "some answers should end in EOS"
    decoding = DecodingConfig(num_beams=3, max_new_tokens=LIMIT, eos_ids=EOS[kind], **options)
    assert pair.answers(decoding) == wanted


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_what_hypotheses_are_worth_is_transformers_sequences_scores(pairs, kind):
    import torch

    pair, ids = pairs[kind], INPUTS[2]
    with torch.no_grad():
        made = pair.theirs.generate(
            torch.tensor([ids]), num_beams=4, num_return_sequences=4, length_penalty=0.7, max_new_tokens=LIMIT,
            eos_token_id=list(EOS[kind]), pad_token_id=0, do_sample=False, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
    decoding = DecodingConfig(num_beams=4, num_samples=4, length_penalty=0.7, max_new_tokens=LIMIT, eos_ids=EOS[kind])
    found = beam_search(pair.config, Compute(), pair.params, [INPUTS[0], ids], decoding)
    assert [len(hypotheses) for hypotheses in found] == [4, 4]
    np.testing.assert_allclose([x.worth for x in found[1]], made.sequences_scores, rtol=1e-4)
    assert [x.ids for hypotheses in found for x in hypotheses] == pair.answers(decoding, [INPUTS[0], ids])


def whole_ones(pair, eos_ids):
    decoding = DecodingConfig(num_beams=3, num_samples=3, max_new_tokens=LIMIT, eos_ids=eos_ids)
    found = beam_search(pair.config, Compute(), pair.params, INPUTS, decoding)
    return [hypothesis for hypotheses in found for hypothesis in hypotheses]


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_hypotheses_say_why_they_ended(pairs, kind):
    assert {one.finish for one in whole_ones(pairs[kind], ())} == {"length"}
    ended = whole_ones(pairs[kind], EOS[kind])
    assert {one.finish for one in ended} == {"stop", "length"}
    assert all(len(one.ids) < LIMIT for one in ended if one.finish == "stop")
    assert all(len(one.ids) == LIMIT for one in ended if one.finish == "length")


def test_padding_in_an_answer_is_no_end(pairs):
    pair = pairs["t5"]
    swapped = [PAD_ID, whole_ones(pair, ())[0].ids[0]]  # so that padding is as likely as that token was
    kernel = np.array(pair.params["decoder"]["logits_dense"]["kernel"])
    kernel[:, swapped] = kernel[:, swapped[::-1]]
    params = pair.params | {"decoder": pair.params["decoder"] | {"logits_dense": {"kernel": kernel}}}
    found = whole_ones(pair._replace(params=params), ())
    assert min(len(one.ids) for one in found) < LIMIT, "some padding is left out"
    assert {one.finish for one in found} == {"length"}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_row_does_not_depend_on_its_neighbours(pairs, kind):
    pair, decoding = pairs[kind], DecodingConfig(num_beams=3, num_samples=2, max_new_tokens=LIMIT, eos_ids=EOS[kind])
    together = pair.answers(decoding)
    assert [ids for row in INPUTS for ids in pair.answers(decoding, [row])] == together
    turned = pair.answers(decoding, INPUTS[::-1], batch_rows=2)
    assert [ids for i in range(len(INPUTS))[::-1] for ids in turned[2 * i : 2 * i + 2]] == together


def test_flan_t5_small_as_transformers(flan_t5_small, test_data):
    transformers = pytest.importorskip("transformers")
    golden = json.loads((test_data / "checkpoints" / "flan_t5_small_int8" / "expected_greedy.json").read_text())
    inputs = [example["input_ids"] for example in golden]
    config, params = read_hf_t5(flan_t5_small)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(flan_t5_small).eval()
    pair = Pair(theirs, config, in_memory(params), (1,))
    wanted = pair.transformers_answers(inputs, num_beams=4, max_new_tokens=20)
    found = generate(config, Compute(), pair.params, inputs, DecodingConfig(num_beams=4, max_new_tokens=20))
    assert found == wanted
    assert found != [[x for x in example["greedy_ids"] if x > 1] for example in golden], "beams should find more"


def test_smollm2_as_transformers(smollm2):
    transformers = pytest.importorskip("transformers")
    prompts = ["The capital of France is", "Three colours: red,"]
    model, tokenizer = flanjax.load(smollm2), transformers.AutoTokenizer.from_pretrained(smollm2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32").eval()
    pair = Pair(theirs, model.config, model.params, EOS["llama"])
    inputs = [tokenizer(text)["input_ids"] for text in prompts]
    wanted = pair.transformers_answers(inputs, num_beams=4, max_new_tokens=8)
    assert pair.answers(DecodingConfig(num_beams=4, max_new_tokens=8, eos_ids=EOS["llama"]), inputs) == wanted
    assert all(len(ids) == 8 for ids in wanted)
