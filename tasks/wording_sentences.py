"""Wording of the types that judge sentences: inference, paraphrase, similarity, reference, sense, acceptability."""

from flanjax.tasks.wording import ask, invert, worded

TYPES = (
    worded(
        "nli",
        ("premise", "hypothesis"),
        ask("{premise}\nTaking that as given, does this hold? {hypothesis}", "\nVerdict:"),
        ask(
            "Passage: {premise}\nClaim: {hypothesis}\nHow does the claim relate to the passage?",
            "\nAnswer:",
            shown="Passage: {premise}\nClaim: {hypothesis}\nHow does the claim relate to the passage? {options}",
            framed=False,
        ),
        ask('Somebody tells you: {premise}\nWould they have to agree with the statement "{hypothesis}"?'),
        ask(
            "Compare two statements.\nThe first: {premise}\nThe second: {hypothesis}\n"
            "What does the first say about the second?",
            "\nIt says:",
            shown="Compare two statements.\nThe first: {premise}\nThe second: {hypothesis}\n"
            "Which of these describes what the first says about the second?\n{options}",
        ),
        ask('"{hypothesis}"\nJudge this sentence by nothing but the text here.\n{premise}'),
        ask("Known: {premise}\nTo be checked: {hypothesis}\nWhat is the outcome?", "\nOutcome:", framed=False),
        ask("A report says: {premise}\nA reader concludes: {hypothesis}\nIs the reader right?"),
        ask(
            "Decide what can be said of the hypothesis once the premise is accepted.\n"
            "Premise: {premise}\nHypothesis: {hypothesis}",
            "\nDecision:",
            shown="Choose what can be said of the hypothesis once the premise is accepted.\n"
            "Premise: {premise}\nHypothesis: {hypothesis}\n{options}",
        ),
        invert(
            'Write a sentence about which someone who knows "{premise}" would give the judgement "{answer}".',
            "{hypothesis}",
        ),
        invert("Make up a premise, and a hypothesis to be tested against it.", "{premise}\nHypothesis: {hypothesis}"),
        options=True,
    ),
    worded(
        "paraphrase",
        ("sentence1", "sentence2"),
        ask("{sentence1}\n{sentence2}\nIs either of the two a rewording of the other?"),
        ask("First: {sentence1}\nSecond: {sentence2}\nIs the same thing said twice?", "\nAnswer:", framed=False),
        ask('Would a reader learn the same from "{sentence1}" as from "{sentence2}"?'),
        ask("Here are two sentences.\n(1) {sentence1}\n(2) {sentence2}\nAre they equal in meaning?", "\nJudgement:"),
        ask(
            "An editor removes repetitions. Does the second line repeat the first?\n{sentence1}\n{sentence2}",
            shown="An editor removes repetitions. Does the second line repeat the first?\n{options}\n"
            "{sentence1}\n{sentence2}",
        ),
        ask('"{sentence1}" and "{sentence2}": do both mean one thing?', "\nVerdict:"),
        ask('Could "{sentence2}" stand in place of "{sentence1}" with nothing lost or added?'),
        ask(
            "Compare the meaning of the two.\nOne: {sentence1}\nTwo: {sentence2}",
            "\nResult:",
            shown="Compare the meaning of the two and pick a verdict.\nOne: {sentence1}\nTwo: {sentence2}\n{options}",
        ),
        ask('Someone wrote "{sentence1}" and somebody else "{sentence2}". Did they express the same idea?'),
        ask("Sentence: {sentence1}\nProposed paraphrase: {sentence2}\nIs the proposal sound?", framed=False),
        options=True,
    ),
    worded(
        "sentence_similarity",
        ("sentence1", "sentence2"),
        ask(
            "{sentence1}\n{sentence2}\nHow alike are these in meaning, from 0 for unrelated to 5 for the same?",
            "\nScore:",
        ),
        ask(
            "Rate the likeness of two sentences, where 0 is none and 5 is full.\nOne: {sentence1}\nTwo: {sentence2}",
            "\nRating:",
        ),
        ask('On a scale that runs from 0 to 5, how close is "{sentence1}" to "{sentence2}"?'),
        ask("A: {sentence1}\nB: {sentence2}", "\nDegree of shared meaning (0-5):", framed=False),
        ask(
            "Two lines: {sentence1} / {sentence2}\nGive a whole number for how much they agree in content; five is "
            "complete agreement.",
            shown="Two lines: {sentence1} / {sentence2}\nPick the number that says how much they agree in content; "
            "five is complete agreement.\n{options}",
        ),
        ask('How much of what "{sentence1}" says is also said by "{sentence2}"? Zero is nothing, five is all of it.'),
        ask(
            "You mark pairs of sentences for closeness of meaning, 5 being the top mark. Mark this pair.\n"
            "- {sentence1}\n- {sentence2}",
            "\nMark:",
        ),
        ask("First text: {sentence1}\nSecond text: {sentence2}", "\nSimilarity, 0 to 5:", framed=False),
        invert('Change "{sentence1}" so that the likeness to the result is {answer} out of 5.', "{sentence2}"),
        invert(
            "Write two sentences whose meanings are alike to the degree of {answer} out of 5.",
            "{sentence1}\n{sentence2}",
        ),
        options=True,
    ),
    worded(
        "coreference",
        ("text", "pronoun"),
        ask('{text}\nWhat does "{pronoun}" stand for here?', "\nIt stands for"),
        ask('In the text below, who or what is meant by "{pronoun}"?\n{text}', "\nThat is:"),
        ask("Text: {text}\nPronoun: {pronoun}", "\nRefers to:", framed=False),
        ask('Read this: {text}\nNow put a name in place of "{pronoun}".', "\nName:"),
        ask(
            'Resolve the word "{pronoun}".\n{text}',
            shown='Choose what the word "{pronoun}" resolves to.\n{text}\n{options}',
        ),
        ask('"{text}"\nA listener asks whom or what the speaker means by "{pronoun}". Tell the listener.'),
        ask('{text}\nThe word "{pronoun}" points back to something mentioned before. To what?', "\nTo"),
        ask(
            'Find the antecedent of "{pronoun}" in this text: {text}',
            "\nAntecedent:",
            shown='Find the antecedent of "{pronoun}" among the candidates. {options}\nText: {text}',
        ),
        ask('{text}\nWhat would one have to say in place of "{pronoun}" to be clear?'),
        invert('Write a text in which "{pronoun}" refers to {answer}.', "{text}"),
        options=True,
    ),
    worded(
        "winogrande",
        ("text",),
        ask("{text}\nWhat belongs in the gap?", "\nIn the gap:"),
        ask("Fill the blank, which is written as an underscore, so that the sentence makes sense.\n{text}"),
        ask("Incomplete: {text}", "\nMissing:", framed=False),
        ask('Who or what is hidden behind the underscore in "{text}"?', "\nIt is:"),
        ask("Common sense is enough to complete this sentence: {text}", "\nThe missing words are", framed=False),
        ask(
            "{text}\nA word was rubbed out where the underscore is. Restore it.",
            shown="{text}\nA word was rubbed out where the underscore is. Select it from these.\n{options}",
        ),
        ask("Complete the statement by naming what the _ is about.\n{text}", "\nAnswer:"),
        ask('"{text}" To what does the underscore refer?'),
        ask("Cloze test. {text}", "\nSolution:", shown="Cloze test with choices. {text}\n{options}"),
        invert(
            'Write a sentence with a gap, marked by an underscore, that only "{answer}" completes sensibly.', "{text}"
        ),
        options=True,
    ),
    worded(
        "word_sense",
        ("word", "sentence1", "sentence2"),
        ask('{sentence1}\n{sentence2}\nIs "{word}" used in one and the same sense in both?'),
        ask("Word: {word}\nUse 1: {sentence1}\nUse 2: {sentence2}\nSame sense?", framed=False),
        ask('Would a dictionary put "{word}" in "{sentence1}" under the same entry as in "{sentence2}"?'),
        ask('Look at "{word}".\n1. {sentence1}\n2. {sentence2}\nDoes its meaning stay the same?', "\nAnswer:"),
        ask(
            'Compare how "{word}" is meant.\n{sentence1}\n{sentence2}',
            "\nFinding:",
            shown='Compare how "{word}" is meant and choose a finding.\n{sentence1}\n{sentence2}\n{options}',
        ),
        ask('If I say "{sentence1}" and then "{sentence2}", do I speak of {word} in the same way?'),
        ask('A learner knows "{word}" from this sentence: {sentence1}\nWill that meaning do here, too? {sentence2}'),
        ask(
            'Words have several meanings. Does "{word}" have one meaning in this pair?\n- {sentence1}\n- {sentence2}',
            "\nVerdict:",
        ),
        ask("{sentence1} / {sentence2}\nDo the two agree on what {word} means?"),
        invert('Use the word "{word}" in two sentences.', "{sentence1}\n{sentence2}"),
        options=True,
    ),
    worded(
        "acceptability",
        ("text",),
        ask("{text}\nWhat does a native speaker say to the grammar of that?"),
        ask("Sentence: {text}", "\nGrammatical judgement:", framed=False),
        ask('Is "{text}" well formed English?'),
        ask("Proofread for grammar alone: {text}", "\nFinding:"),
        ask(
            "How would a linguist mark this sentence?\n{text}",
            "\nMark:",
            shown="How would a linguist mark this sentence? Pick a mark.\n{text}\n{options}",
        ),
        ask('Someone says "{text}" Does the sentence obey the rules of English?'),
        ask("Judge whether one can put it like this.\n{text}", "\nJudgement:"),
        ask("{text}\nIs that sentence fine as it stands?"),
        ask("Check the syntax of this line. {text}", shown="Check the syntax of this line. {text}\nChoices: {options}"),
        invert('Write a sentence that a linguist would mark as "{answer}".', "{text}"),
        options=True,
    ),
)
