"""Prompts, P-tuning and prefixes: every segment of a packed row has its own, and answers as it would alone."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.data.cache import Example
from flanjax.data.packing import Batch, pack_rows
from flanjax.data.placeholders import Placeholders
from flanjax.generation.greedy import greedy
from flanjax.generation.scoring import score
from flanjax.interchange.runs import recipe
from flanjax.models.attention import PrefixKeys, attention
from flanjax.models.config import Compute, ModelConfigError, T5Config
from flanjax.models.layers import NO_DROPOUT
from flanjax.models.prompts import positions_in_segments
from flanjax.models.t5 import abstract_params, build, init_params
from flanjax.tuning.lora import LoRA
from flanjax.tuning.method import Method, TuningError
from flanjax.tuning.methods import from_settings, to_settings
from flanjax.tuning.p_tuning import PTuning
from flanjax.tuning.partition import Partition, added_paths, begin, flatten, merged, unflatten
from flanjax.tuning.prefix import PrefixTuning, folded
from flanjax.tuning.prompt import PromptTuning, prompt_table

from .conftest import GATED

EMBEDDING = "encoder/prompt/embedding"

LENGTH, TASKS = 3, ("sort", "add")
EVERYWHERE = r".*attention"
METHOD_SETS: dict[str, tuple[Method, ...]] = {
    "prompt": (PromptTuning(length=LENGTH),),
    "prompts_of_tasks": (PromptTuning(length=LENGTH, tasks=TASKS),),
    "p_tuning": (PTuning(length=LENGTH, hidden_dim=5),),
    "p_tuning_lstm": (PTuning(length=LENGTH, encoder="lstm", hidden_dim=4, tasks=TASKS),),
    "prefix": (PrefixTuning(length=LENGTH),),
    "prefix_everywhere": (PrefixTuning(length=LENGTH, attentions=EVERYWHERE),),
    "prefix_of_a_network": (PrefixTuning(length=LENGTH, attentions=EVERYWHERE, hidden_dim=5),),
    "all_at_once": (LoRA(rank=2), PromptTuning(length=2, tasks=TASKS), PrefixTuning(length=LENGTH)),
}
PROMPTED = {name: methods for name, methods in METHOD_SETS.items() if "prefix" not in name}
each = pytest.mark.parametrize("methods", METHOD_SETS.values(), ids=METHOD_SETS)


def some(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("methods", [METHOD_SETS[name] for name in names], ids=names)


# Two rows of two examples: the task of each, its tokens of input and of target.
ROWS = [[("sort", 5, 3), ("add", 6, 4)], [("add", 7, 2), ("sort", 2, 5)]]


def rows_of(model: T5Config) -> list[list[Example]]:
    """The examples of `ROWS` behind the model's placeholders, as the loader gives them."""
    random, placeholders = np.random.default_rng(1), Placeholders(model.prompt_length, model.prompt_tasks)

    def tokens(count: int) -> np.ndarray:
        return np.append(random.integers(2, 64, count - 1), 1).astype(np.int32)

    return [
        [
            Example(inputs=placeholders.before(tokens(inputs), placeholders.number(task)), targets=tokens(targets))
            for task, inputs, targets in row
        ]
        for row in ROWS
    ]


def packed(model: T5Config) -> Batch:
    return pack_rows(rows_of(model), (20, 8))


@functools.partial(jax.jit, static_argnums=(0, 1))
def compiled_logits(model: T5Config, compute: Compute, params: Any, batch: Batch) -> jax.Array:
    built = build(model, compute, params)
    return built.logits(built(batch))


def logits(model: T5Config, params: Any, batch: Batch, **compute: Any) -> np.ndarray:
    return np.asarray(compiled_logits(model, Compute(**compute), params, batch))


def assert_packed_equals_unpacked(model, params):
    together, examples = packed(model), [example for row in rows_of(model) for example in row]
    found = logits(model, params, together)
    alone = logits(model, params, pack_rows([[example] for example in examples], (11, 5)))
    for number, example in enumerate(examples):
        row, segment = divmod(number, 2)
        inside = together["decoder_segment_ids"][row] == segment + 1
        np.testing.assert_allclose(alone[number, : len(example.targets)], found[row][inside], rtol=1e-4, atol=1e-4)


@each
def test_packed_equals_unpacked(tuned, methods):
    assert_packed_equals_unpacked(*tuned(GATED, *methods, moved=True))


@some("prompts_of_tasks", "p_tuning_lstm", "prefix_everywhere", "prefix_of_a_network", "all_at_once")
def test_scanned_equals_unrolled_equals_recomputed(tuned, methods):
    model, params = tuned(GATED, *methods, moved=True)
    unrolled = logits(model, params, packed(model), scan_layers=False)
    for compute in ({}, {"remat": "full"}, {"remat": "minimal", "scan_layers": False}):
        found = logits(model, params, packed(model), **compute)
        np.testing.assert_allclose(found, unrolled, rtol=1e-5, atol=1e-5)


def assert_cached_equals_forced(model, params):
    example = rows_of(model)[0][1]
    batch = pack_rows([[example]], (len(example.inputs), len(example.targets)))
    built, segments = build(model, Compute(), params), batch["encoder_segment_ids"]
    forced = logits(model, params, batch)[0]
    step = jax.jit(lambda *given: build(model, Compute(), params).decode_step(*given))
    cache = built.start_cache(built.encode(batch["encoder_input_tokens"], segments), segments, 8)
    for position, token in enumerate(batch["decoder_input_tokens"][0]):
        hidden, cache = step(jnp.asarray([token]), jnp.int32(position), cache)
        np.testing.assert_allclose(built.logits(hidden[0]), forced[position], rtol=1e-4, atol=1e-4)


@some("prompt", "p_tuning", "prefix", "prefix_everywhere", "prefix_of_a_network", "all_at_once")
def test_decoding_with_the_cache_is_teacher_forcing(tuned, methods):
    assert_cached_equals_forced(*tuned(GATED, *methods, moved=True))


@some("all_at_once")
def test_layers_may_have_position_tables_of_their_own(tuned, methods):
    tables = dataclasses.replace(GATED, relpos_per_layer=True)
    model, params = tuned(tables, *methods, moved=True)
    assert_packed_equals_unpacked(model, params)
    assert_cached_equals_forced(model, params)


@some("p_tuning", "prompts_of_tasks", "prefix_everywhere")
def test_answers_and_scores_are_given_to_the_text_alone(tuned, methods):
    model, params = tuned(GATED, *methods, moved=True)
    numbers = [1, 0] if model.prompt_tasks else None
    texts = [[9, 5, 30, 1], [7, 1]]
    placeholders = Placeholders(model.prompt_length, model.prompt_tasks)
    batch = pack_rows(
        [
            [
                Example(
                    inputs=placeholders.before(np.array(ids, np.int32), number), targets=np.array([8, 4, 1], np.int32)
                )
            ]
            for ids, number in zip(texts, numbers or [0, 0], strict=True)
        ],
        (8, 3),
    )
    chosen = jax.nn.log_softmax(logits(model, params, batch))[:, np.arange(3), [8, 4, 1]].sum(axis=1)
    found = score(model, Compute(), params, texts, [[8, 4, 1]] * 2, prompts=numbers)
    np.testing.assert_allclose([score.total for score in found], chosen, rtol=1e-4)
    answers = greedy(model, Compute(), params, texts, 3, prompts=numbers)
    first = logits(model, params, batch)[:, 0].argmax(axis=1)
    assert [answer[:1] for answer in answers] == [[token] if token > 1 else [] for token in first.tolist()]
    if numbers:
        with pytest.raises(ValueError, match="2 inputs need as many numbers of prompts, not None"):
            greedy(model, Compute(), params, texts, 3)
        with pytest.raises(ValueError, match=r"prompts \[0, 2\]: the model's are numbered from 0"):
            greedy(model, Compute(), params, texts, 3, prompts=[0, 2])


@each
def test_only_what_is_added_moves_and_all_of_it_has_a_gradient(tuned, methods):
    model, params = tuned(GATED, *methods, moved=True)
    trainable, frozen = Partition.of(model).split(params)
    assert flatten(trainable).keys() == added_paths(model)
    batch = packed(model)

    @jax.jit
    def loss(trainable):
        own = unflatten(flatten(trainable) | flatten(frozen))
        built = build(model, Compute(), own)
        return jnp.square(built.logits(built(batch))).mean()

    for path, gradient in flatten(jax.grad(loss)(trainable)).items():
        each_prompt = gradient if path == EMBEDDING else gradient[None]
        assert all(np.abs(one).max() > 0 for one in each_prompt), path


@some("p_tuning", "all_at_once")
def test_bfloat16_is_near_float32(tuned, methods):
    model, params = tuned(GATED, *methods)
    exact, rounded = (logits(model, params, packed(model), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert np.isfinite(rounded).all()
    np.testing.assert_allclose(rounded, exact, atol=0.15 * np.abs(exact).max())


@each
def test_methods_come_back_from_the_settings_of_a_run(methods):
    assert from_settings(to_settings(methods)) == methods
    assert hash(from_settings(to_settings(methods))) == hash(methods)


@each
def test_merging_is_refused_with_the_reason(tuned, methods):
    model, params = tuned(GATED, *methods)
    with pytest.raises(TuningError, match=r"cannot be merged into .* PEFT folder"):
        merged(model, params)


@pytest.mark.parametrize("methods", PROMPTED.values(), ids=PROMPTED)
def test_a_prompt_is_vectors_before_the_embeddings(tuned, methods):
    """What the encoder of the base model makes of [P; E(x)], computed without placeholders."""
    methods = tuple(method for method in methods if method.prompt_length)
    model, params = tuned(GATED, *methods, moved=True)
    prompts = prompt_table(model, params)
    assert prompts.shape == (max(len(model.prompt_tasks), 1), model.prompt_length, GATED.embed_dim)
    own = {path: value for path, value in flatten(params).items() if path not in added_paths(model)}
    plain = build(GATED, Compute(), unflatten(own))
    text = np.array([5, 9, 1], np.int32)
    number = len(prompts) - 1
    x = jnp.concatenate([prompts[number], plain.token_embedder.embedding[...][text]])[None]
    expected = plain.encoder(x, np.ones(x.shape[:2], np.int32), NO_DROPOUT, Compute())
    tokens = Placeholders(model.prompt_length).before(text, number)[None]
    found = build(model, Compute(), params).encode(tokens, np.ones_like(tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_positions_restart_in_every_segment():
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [3, 1, 1, 1, 4, 4, 4], [0] * 7])
    expected = [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 0, 1, 2], list(range(7))]
    np.testing.assert_array_equal(positions_in_segments(segments), expected)


def test_a_prefix_is_keys_that_every_query_sees():
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, 4, 2, 3), np.float32) for _ in range(3))
    keys = random.standard_normal((5, 2, 3), np.float32)
    values = random.standard_normal((2, 5, 2, 3), np.float32)
    bias, own_bias = random.standard_normal((1, 2, 4, 4), np.float32), random.standard_normal((2, 2, 4, 5), np.float32)
    mask = np.tri(4, dtype=bool)[None, None]
    found = attention(q, k, v, bias=bias, mask=mask, prefix=PrefixKeys(keys, values, own_bias), implementation="auto")
    longer = [np.concatenate([np.broadcast_to(keys, (2, 5, 2, 3)), k], 1), np.concatenate([values, v], 1)]
    scores = np.einsum("bqhd,bkhd->bhqk", q, longer[0])
    scores += np.concatenate([own_bias, np.broadcast_to(np.where(mask, bias, -np.inf), (2, 2, 4, 4))], -1)
    expected = np.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), longer[1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelConfigError, match="'blockwise' has no place for a prefix"):
        attention(q, k, v, prefix=PrefixKeys(keys, values, None), implementation="blockwise")


def test_what_a_network_makes_is_the_prefix(tuned):
    """Folded away, and layer by layer by the formula of the paper."""
    (method,) = METHOD_SETS["prefix_of_a_network"]
    model, params = tuned(GATED, method, moved=True)
    plain, made = folded(method, model, params)
    assert plain == PrefixTuning(length=LENGTH, attentions=EVERYWHERE)
    for stack, name in (
        ("encoder", "attention"),
        *(("decoder", n) for n in ("self_attention", "encoder_decoder_attention")),
    ):
        network = params[stack]["prefix"][name]
        hidden = np.tanh(network["embedding"] @ network["dense"]["kernel"] + network["dense"]["bias"])
        for part in ("key", "value"):
            found = made[f"{stack}/layers/{name}/prefix/{part}"]
            for layer, kernel in enumerate(network[part]["kernel"]):
                expected = (hidden @ kernel + network[part]["bias"][layer]).reshape(LENGTH, 2, 4)
                np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-5)
    own = {path: value for path, value in flatten(params).items() if path not in added_paths(model)}
    alone = dataclasses.replace(GATED, added=(plain,))
    assert added_paths(alone) == made.keys()
    expected = logits(model, params, packed(model))
    np.testing.assert_allclose(logits(alone, unflatten(own | made), packed(model)), expected, rtol=1e-5, atol=1e-5)
    # A prefix that no network makes is its own.
    again, same = folded(plain, alone, unflatten(own | made))
    assert again == plain
    jax.tree.map(np.testing.assert_array_equal, same, made)


def test_dropout_on_attention_weights_falls_on_the_prefix_too(tuned):
    model, params = tuned(dataclasses.replace(GATED, dropout_rate=0.5), PrefixTuning(length=LENGTH))
    params["decoder"]["layers"]["self_attention"]["prefix"]["key"] += 100.0  # nothing else is seen
    batch = packed(model)
    run = jax.jit(lambda key: build(model, Compute(), params)(batch, dropout_key=key))
    one, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3


@pytest.fixture
def begun():
    """begun(PromptTuning(...)): the prompts that tuning begins with, and the token table of the base."""

    def make(method: PromptTuning, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        base = init_params(GATED, 7)
        model = dataclasses.replace(GATED, added=(method,))
        Partition.of(model)
        params = begin(model, base, lambda text: [2 + ord(letter) % 60 for letter in text.replace(" ", "")], seed)
        jax.tree.map(np.testing.assert_array_equal, base["token_embedder"], params["token_embedder"])
        return np.asarray(prompt_table(model, params)), np.asarray(base["token_embedder"]["embedding"])

    return make


def test_a_random_prompt_is_uniform(begun):
    prompts, _ = begun(PromptTuning(length=20, init="random"))
    assert np.abs(prompts).max() <= 0.5
    assert np.abs(prompts).max() > 0.45
    assert np.any(prompts != begun(PromptTuning(length=20, init="random"), seed=1)[0])


def test_a_prompt_of_the_vocabulary_is_different_tokens_of_it_by_the_seed(begun):
    method = PromptTuning(length=8, init="vocabulary", vocabulary_ids=10, tasks=TASKS)
    prompts, table = begun(method)

    def ids(prompts):
        return [[int(np.flatnonzero((table == vector).all(axis=1))[0]) for vector in prompt] for prompt in prompts]

    found = ids(prompts)
    assert all(len(set(prompt)) == 8 for prompt in found)
    assert all(max(prompt) < 10 for prompt in found)
    assert found[0] != found[1]
    assert ids(begun(method)[0]) == found
    assert ids(begun(method, seed=1)[0]) != found
    begun(PromptTuning(length=12, init="vocabulary", vocabulary_ids=10))  # more than there are: some come twice


def test_class_labels_come_first_and_the_vocabulary_fills_the_rest(begun):
    prompts, table = begun(PromptTuning(length=4, init="class_labels", init_labels=("ab", "c"), vocabulary_ids=10))
    a, b, c = (2 + ord(letter) % 60 for letter in "abc")
    np.testing.assert_allclose(prompts[0, 0], (table[a] + table[b]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(prompts[0, 1], table[c])
    assert all(any(np.array_equal(vector, row) for row in table[:10]) for vector in prompts[0, 2:])


@pytest.mark.parametrize(("length", "letters"), [(5, "abcab"), (2, "ab"), (3, "abc")])
def test_a_text_is_repeated_or_cut(begun, length, letters):
    prompts, table = begun(PromptTuning(length=length, init="text", init_text="a b c", tasks=TASKS))
    expected = table[[2 + ord(letter) % 60 for letter in letters]]
    for prompt in prompts:
        np.testing.assert_array_equal(prompt, expected)


def test_a_file_is_taken_as_it_is(begun, tmp_path):
    saved = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    np.save(tmp_path / "prompt.npy", saved)
    prompts, _ = begun(PromptTuning(length=4, init="file", init_file=str(tmp_path / "prompt.npy")))
    np.testing.assert_array_equal(prompts[0], saved)


@pytest.mark.parametrize("task", ["sst2", "mrpc", "rte"])
def test_published_prompts_are_read(test_data, task):
    file = test_data / "adapters" / "prompt_tuning_t5_1_1_lm100k_base" / f"{task}.npy"
    wide = dataclasses.replace(GATED, embed_dim=768)
    method = PromptTuning(length=100, init="file", init_file=str(file))
    Partition.of(dataclasses.replace(wide, added=(method,)))
    start = {"token_embedder/embedding": np.zeros((64, 768)), EMBEDDING: np.zeros((1, 100, 768), np.float32)}
    np.testing.assert_array_equal(method.begin(wide, start, list)[EMBEDDING][0], np.load(file))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (np.zeros((3, 16), np.float32), r"holds float32 \(3, 16\), not float32 \(4, 16\).*set PromptTuning.length"),
        (np.zeros((4, 16)), r"holds float64 \(4, 16\)"),
        (np.full((4, 16), np.nan, np.float32), "not finite"),
        (np.array([{"an": "object"}]), "cannot be read as a .npy of numbers"),
        (b"something else", "cannot be read as a .npy of numbers"),
        (None, "cannot be read as a .npy of numbers: .*No such file"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_the_run(tmp_path, saved, message):
    file = tmp_path / "prompt.npy"
    if isinstance(saved, bytes):
        file.write_bytes(saved)
    elif saved is not None:
        np.save(file, saved)
    method = PromptTuning(length=4, init="file", init_file=str(file))
    with pytest.raises(TuningError, match=message):
        Partition.of(dataclasses.replace(GATED, added=(method,)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptTuning(length=0), r"PromptTuning\.length is 0"),
        (lambda: PTuning(length=0), r"PTuning\.length is 0"),
        (lambda: PrefixTuning(length=0), r"PrefixTuning\.length is 0"),
        (lambda: PromptTuning(init="vocab"), r"'vocab' \(did you mean 'vocabulary'"),
        (lambda: PromptTuning(init="text"), "init='text' needs init_text"),
        (lambda: PromptTuning(init_text="a"), "init='vocabulary' does not use init_text"),
        (lambda: PromptTuning(init="class_labels", init_labels=("a", "b"), length=1), "init_labels are 2"),
        (lambda: PromptTuning(vocabulary_ids=0), "vocabulary_ids is 0"),
        (lambda: PromptTuning(tasks=("a", "b", "a")), "has a twice"),
        (lambda: PTuning(encoder="gru"), r"PTuning\.encoder is 'gru'.*mlp, lstm"),
        (lambda: PTuning(hidden_dim=0), r"PTuning\.hidden_dim is 0"),
        (lambda: PrefixTuning(hidden_dim=0), r"PrefixTuning\.hidden_dim is 0"),
        (lambda: PrefixTuning(attentions="("), r"PrefixTuning\.attentions = '\(' is no regular expression"),
        (
            lambda: dataclasses.replace(GATED, added=(PromptTuning(), PTuning())),
            "PromptTuning and PTuning: .*one prompt",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises((TuningError, ModelConfigError), match=message):
        make()


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((PrefixTuning(attentions=".*atention"),), r"attentions = '\.\*atention' matches nothing"),
        ((PrefixTuning(), PrefixTuning()), "PrefixTuning more than once"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(methods, message):
    with pytest.raises(TuningError, match=message):
        Partition.of(dataclasses.replace(GATED, added=methods))


def test_the_recipe_of_a_run_names_a_file_and_not_its_folder():
    settings = {"tuning": to_settings((PromptTuning(init="file", init_file="/home/somebody/prompt.npy"),))}
    told = recipe(settings, 3)["Tuning methods"]
    assert "init_file=prompt.npy" in told
    assert "somebody" not in told


@pytest.mark.parametrize("hidden_dim", [None, 4])
def test_a_prefix_is_refused_where_attention_has_no_place_for_it(hidden_dim):
    model = dataclasses.replace(GATED, added=(PrefixTuning(hidden_dim=hidden_dim),))
    with pytest.raises(TuningError, match=r"'blockwise' has no place for a prefix: set Compute.attention to 'auto'"):
        build(model, Compute(attention="blockwise"), abstract_params(model))


def test_words_without_a_token_are_refused(begun):
    for method in (PromptTuning(init="text", init_text=" "), PromptTuning(init="class_labels", init_labels=("a", " "))):
        with pytest.raises(TuningError, match="' ' has no token in this vocabulary"):
            begun(method)


def test_a_model_without_a_prompt_has_no_table(tuned):
    with pytest.raises(TuningError, match="this model has no prompt"):
        prompt_table(*tuned(GATED, PrefixTuning(length=2)))
