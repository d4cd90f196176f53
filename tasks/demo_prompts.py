"""The wording of the demo tasks: for each at least three zero-shot templates, a few-shot one and a chain of thought.

Newlines would not survive a SentencePiece vocabulary, so exemplars are set apart by words alone.
"""

from flanjax.data.prompts import CHAIN_OF_THOUGHT, FewShotTemplate, Prompts, Template


def _prompts(*zero_shot: str, few_shot: tuple[str, str], thinking: str) -> Prompts:
    """Prompts from plain strings; `few_shot` is (opening, layout), `thinking` asks for the steps first."""
    opening, layout = few_shot
    return Prompts(
        zero_shot=tuple(Template(inputs=inputs) for inputs in zero_shot),
        few_shot=tuple(
            FewShotTemplate(opening=opening, layout=Template(inputs=layout), shots=shots, separator=" ")
            for shots in (1, 2)
        ),
        chain_of_thought=(
            Template(inputs=f"{thinking} Think step by step.", targets=CHAIN_OF_THOUGHT),
            Template(inputs=f"Explain your answer. {thinking}", targets=CHAIN_OF_THOUGHT),
        ),
    )


PROMPTS: dict[str, Prompts] = {
    "pick_word": _prompts(
        "What is the {which} word? Words: {words}.",
        "Words: {words}. Give the {which} word.",
        "Words: {words}. Which one comes {which}?",
        few_shot=("Pick a word.", "Words: {words}. The {which} one:"),
        thinking="What is the {which} word? Words: {words}.",
    ),
    "reverse_words": _prompts(
        "Reverse the order. Words: {words}.",
        "Words: {words}. Write them backwards, last one first.",
        "Words: {words}. Turn the order around.",
        few_shot=("Reverse the order.", "Words: {words}. Backwards:"),
        thinking="Reverse the order. Words: {words}.",
    ),
    "sort_words": _prompts(
        "Sort by the alphabet. Words: {words}.",
        "Words: {words}. Put them in alphabetical order.",
        "Words: {words}. Sort them from A to Z.",
        few_shot=("Sort from A to Z.", "Words: {words}. Sorted:"),
        thinking="Sort by the alphabet. Words: {words}.",
    ),
    "sort_numbers": _prompts(
        "Sort the numbers. Numbers: {numbers}.",
        "Numbers: {numbers}. Put them in order, smallest first.",
        "Numbers: {numbers}. Sort them.",
        few_shot=("Sort the numbers.", "Numbers: {numbers}. Sorted:"),
        thinking="Sort the numbers. Numbers: {numbers}.",
    ),
    "compare_numbers": _prompts(
        "Which number is {which}, {first} or {second}?",
        "Give the {which} number: {first} or {second}",
        "Numbers: {first} and {second}. Which is {which}?",
        few_shot=("Compare the numbers.", "Which is {which}, {first} or {second}?"),
        thinking="Which number is {which}, {first} or {second}?",
    ),
    "count_items": _prompts(
        "How many words are there? Words: {words}.",
        "Words: {words}. Count them.",
        "Words: {words}. How many are there?",
        few_shot=("Count the words.", "Words: {words}. Count:"),
        thinking="How many words are there? Words: {words}.",
    ),
    "odd_one_out": _prompts(
        "Which word does not fit? Words: {words}.",
        "Words: {words}. Find the odd one out.",
        "Words: {words}. Three of them belong together. Which one does not?",
        few_shot=("Find the odd one out.", "Words: {words}. Odd one:"),
        thinking="Which word does not fit? Words: {words}.",
    ),
    "lookup_field": _prompts(
        "What is the {key}? {record}",
        "Read the record and give the {key}. {record}",
        "Record: {record}. Which {key} is given?",
        few_shot=("Read the record.", "Record: {record}. The {key}:"),
        thinking="What is the {key}? {record}",
    ),
    "extract_email": _prompts(
        "Find the email address. {sentence}",
        "Which email address is in this sentence? {sentence}",
        "{sentence} Copy the email address.",
        few_shot=("Find the email address.", "Sentence: {sentence} Address:"),
        thinking="Find the email address. {sentence}",
    ),
    "yes_no": _prompts(
        "{facts} Does {name} have the {thing}?",
        "{facts} Yes or no: {name} has the {thing}.",
        "Is it true that {name} has the {thing}? {facts}",
        few_shot=("Answer yes or no.", "{facts} Does {name} have the {thing}?"),
        thinking="{facts} Does {name} have the {thing}?",
    ),
    "who_has": _prompts(
        "{facts} Who has the {thing}?",
        "Who has the {thing}? {facts}",
        "{facts} Name the person who has the {thing}.",
        few_shot=("Read and answer.", "{facts} Who has the {thing}?"),
        thinking="{facts} Who has the {thing}?",
    ),
    "what_has": _prompts(
        "{facts} What does {name} have?",
        "What does {name} have? {facts}",
        "{facts} Name the thing that {name} has.",
        few_shot=("Read and answer.", "{facts} What does {name} have?"),
        thinking="{facts} What does {name} have?",
    ),
    "who_likes": _prompts(
        "{facts} Who likes {colour}?",
        "Who likes {colour}? {facts}",
        "{facts} Name the person who likes {colour}.",
        few_shot=("Read and answer.", "{facts} Who likes {colour}?"),
        thinking="{facts} Who likes {colour}?",
    ),
    "where_lives": _prompts(
        "{facts} Where does {name} live?",
        "Where does {name} live? {facts}",
        "{facts} Name the city where {name} lives.",
        few_shot=("Read and answer.", "{facts} Where does {name} live?"),
        thinking="{facts} Where does {name} live?",
    ),
    "who_lives": _prompts(
        "{facts} Who lives in {city}?",
        "Who lives in {city}? {facts}",
        "{facts} Name the person who lives in {city}.",
        few_shot=("Read and answer.", "{facts} Who lives in {city}?"),
        thinking="{facts} Who lives in {city}?",
    ),
    "add_words": _prompts(
        "{name} has {first} {item} and {change}. How many {item} are there now?",
        "{name} has {first} {item} and {change}. How many {item} does {name} have?",
        "How many {item} does {name} have? {name} has {first} and {change}.",
        few_shot=("How many are there now?", "{name} has {first} {item} and {change}. Now:"),
        thinking="{name} has {first} {item} and {change}. How many {item} are there now?",
    ),
    "days_later": _prompts(
        "{name} goes to {city} on {day} and comes back {count} later. On which day?",
        "On {day} {name} leaves {city}. Which day is it {count} later?",
        "Which day is {count} after {day}, when {name} goes to {city}?",
        few_shot=("Name the day.", "{name} goes to {city} on {day}. The day {count} later:"),
        thinking="{name} goes to {city} on {day} and comes back {count} later. On which day?",
    ),
    "format_date": _prompts(
        "Write the date in words: {date}",
        "Give this date with the name of the month: {date}",
        "Date: {date}. Write it as day, month, year.",
        few_shot=("Write the date in words.", "Date: {date}. In words:"),
        thinking="Write the date in words: {date}",
    ),
    "opposite": _prompts(
        "{sentence} What is the opposite of {word}?",
        "Give the opposite of {word}. {sentence}",
        "{sentence} Ben says the opposite. What does Ben say instead of {word}?",
        few_shot=("Give the opposite.", "{sentence} The opposite of {word}:"),
        thinking="{sentence} What is the opposite of {word}?",
    ),
    "convert_units": _prompts(
        "{name} needs {amount}. How much is that in {target}?",
        "Convert {amount} to {target} for {name}.",
        "How many {target} are {amount}? {name} asks.",
        few_shot=("Convert the unit.", "{name} needs {amount}. In {target}:"),
        thinking="{name} needs {amount}. How much is that in {target}?",
    ),
}
