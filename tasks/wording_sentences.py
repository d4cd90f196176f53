"""Wording of the types that judge sentences: inference, paraphrase, similarity, reference, sense, acceptability."""

from flanjax.tasks.wording import ask, invert, worded

TYPES = (
    worded(
        "nli",
        ("premise", "hypothesis"),
        ask("{premise}\nTaking that as given, is it so that {hypothesis}", "\nVerdict:"),
        ask(
            "Passage: {premise}\nClaim: {hypothesis}\nHow does the claim stand to the passage?",
            "\nAnswer:",
            shown="Passage: {premise}\nClaim: {hypothesis}\nHow does the claim stand to the passage? {options}",
            framed=False,
        ),
        ask('Somebody tells you: {premise}\nWould they have to agree with the statement "{hypothesis}"?'),
        ask(
            "Compare two statements.\nThe first: {premise}\nThe second: {hypothesis}\nWhat does the first say "
            "about the second?",
            "\nIt says:",
            shown="Compare two statements.\nThe first: {premise}\nThe second: {hypothesis}\nWhich of these describes "
            "what the first says about the second?\n{options}",
        ),
        ask('"{hypothesis}"\nJudge this sentence by nothing but the text that follows.\n{premise}'),
        ask("Known: {premise}\nTo be checked: {hypothesis}\nWhat is the outcome?", "\nOutcome:", framed=False),
        ask("A report says the following. {premise}\nA reader concludes: {hypothesis}\nIs the reader right?"),
        ask(
            "Decide what can be said of the hypothesis once the premise is accepted.\nPremise: {premise}\nHypothesis: "
            "{hypothesis}",
            "\nDecision:",
            shown="Choose what can be said of the hypothesis once the premise is accepted.\nPremise: {premise}\n"
            "Hypothesis: {hypothesis}\n{options}",
        ),
        invert('Write a sentence about which someone who knows "{premise}" would answer: {answer}.', "{hypothesis}"),
        invert("Make up a premise, and a hypothesis to be tested against it.", "{premise}\nHypothesis: {hypothesis}"),
        options=True,
    ),
    worded(
        "paraphrase",
        ("sentence1", "sentence2"),
        ask("{sentence1}\n{sentence2}\nIs one of these a rewording of the other?"),
        ask("First: {sentence1}\nSecond: {sentence2}\nIs the same thing said twice?", "\nAnswer:", framed=False),
        ask('Would a reader learn the same from "{sentence1}" as from "{sentence2}"?'),
        ask("Here are two sentences.\n(1) {sentence1}\n(2) {sentence2}\nAre they equal in meaning?", "\nThey are:"),
        ask(
            "An editor wants to remove repetitions. Does the second line repeat the first?\n{sentence1}\n{sentence2}",
            shown="An editor wants to remove repetitions. Does the second line repeat the first?\n{options}\n"
            "{sentence1}\n{sentence2}",
        ),
        ask('"{sentence1}" and "{sentence2}": do both mean one thing?', " My judgement:"),
        ask('Could "{sentence2}" stand in place of "{sentence1}" and nothing be lost or added?'),
        ask(
            "Compare the meaning of the two.\nA: {sentence1}\nB: {sentence2}",
            "\nVerdict:",
            shown="Compare the meaning of the two and pick a verdict.\nA: {sentence1}\nB: {sentence2}\n{options}",
        ),
        ask('Someone wrote "{sentence1}" and somebody else "{sentence2}". Did they express the same idea?'),
        ask("Sentence: {sentence1}\nProposed paraphrase: {sentence2}\nIs the proposal sound?", framed=False),
        options=True,
    ),
)
