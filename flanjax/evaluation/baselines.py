"""What an answerer without understanding scores: the copied question, a copied demonstration, the majority, a guess.

    for name, predictions in baselines(benchmark).items():
        evaluate(benchmark, predictions).average("exact_match")

- copy-input: the question as its own answer.
- copy-demonstration: the output of one of the prompt's demonstrations, drawn at random.
- majority-label: the right answer that is commonest in the task. It is found in the test set itself: a bound, and a
  loose one where a task has few instances, so of a part of a test set give the `whole`.
- random-label: one of the choices, or of the task's answers, each equally likely: what an instruction may teach is
  often no more than the label space (Kung and Peng 2023, arXiv 2305.11383).

Those that a benchmark has nothing for, such as labels where no references are, are left out. The first two are the
heuristics of Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from flanjax.data.draws import Draw
from flanjax.evaluation.benchmark import Benchmark, Instance, Prediction

# An answer that a text or the place of a choice is; None where there is none.
Pick = Callable[[Instance], str | int | None]


def baselines(benchmark: Benchmark, seed: int = 0, whole: Benchmark | None = None) -> dict[str, list[Prediction]]:
    """The predictions of each baseline that has an answer for every instance.

    Args:
      benchmark: whose instances are answered.
      seed: of what is drawn.
      whole: the benchmark that the labels of a task and their counts are taken from; None for `benchmark`.
    """
    instances = list(benchmark.load())
    scored = benchmark.mode == "choices"
    labels = _labels(instances if whole is None else list(whole.load()), scored)
    common = {task: counts.most_common(1)[0][0] for task, counts in labels.items() if counts}

    def say(answer: str | None) -> str | None:
        return None if answer is None else benchmark.say(answer)

    picks: Mapping[str, Pick] = {
        "copy-input": lambda instance: None if scored else instance.input or None,
        "copy-demonstration": lambda instance: _demonstration(instance, seed, scored),
        "majority-label": lambda instance: (
            _place(instance, common.get(instance.task)) if scored else say(common.get(instance.task))
        ),
        "random-label": lambda instance: (
            Draw(seed, "random-label", instance.id).below(len(instance.choices))
            if scored
            else say(_guess(instance, labels[instance.task], seed))
        ),
    }
    found = {name: [_prediction(instance, pick(instance)) for instance in instances] for name, pick in picks.items()}
    return {
        name: [prediction for prediction in predictions if prediction is not None]
        for name, predictions in found.items()
        if predictions and None not in predictions
    }


def _labels(instances: Sequence[Instance], scored: bool) -> dict[str, Counter[str]]:
    """How often each text is the right answer in each task, the first of equally common ones in order of the texts."""
    labels: dict[str, Counter[str]] = {}
    for instance in sorted(instances, key=lambda each: _right(each, scored) or ""):
        counts = labels.setdefault(instance.task, Counter())
        if (right := _right(instance, scored)) is not None:
            counts[right] += 1
    return labels


def _right(instance: Instance, scored: bool) -> str | None:
    if scored:
        return instance.choices[instance.correct[0]] if instance.correct else None
    return instance.references[0] if instance.references else None


def _demonstration(instance: Instance, seed: int, scored: bool) -> str | int | None:
    if not instance.demonstrations:
        return None
    text = Draw(seed, "copy-demonstration", instance.id).choice(instance.demonstrations)
    return _place(instance, text) if scored else text


def _guess(instance: Instance, labels: Counter[str], seed: int) -> str | None:
    space = instance.choices or sorted(labels)  # of few instances a task's answers are not all its labels
    return Draw(seed, "random-label", instance.id).choice(space) if space else None


def _place(instance: Instance, text: str | None) -> int | None:
    return instance.choices.index(text) if text in instance.choices else None


def _prediction(instance: Instance, answer: str | int | None) -> Prediction | None:
    if answer is None:
        return None
    if isinstance(answer, str):
        return Prediction(id=instance.id, text=answer)
    likelihoods = tuple(0.0 if place == answer else -math.inf for place in range(len(instance.choices)))
    return Prediction(id=instance.id, loglikelihoods=likelihoods)
