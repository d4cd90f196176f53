"""InstructionWild: instructions that people really gave, found on Twitter, Discord and elsewhere.

Ni et al. 2023, https://github.com/XueFuzhao/InstructionWild. The first version has 429 seed instructions and 52K more
that were generated from them and answered, in English and in Chinese, in Alpaca's form; the second one has 110K
instructions of users, without answers.

    instruction_wild            instinwild_en.json {instruction, input, output}; a mixture too
    instruction_wild_zh         instinwild_ch.json, likewise
    instruction_wild_seed       data/seed_prompts_en.jsonl {instruction}
    instruction_wild_v2         data_v2/user_*.jsonl {instruction, instruction_type, special_tag}

The last two have no answers: they can be looked at and answered, and materialising leaves them out. Some published
lines of data_v2 are no JSON (escapes such as \\d): they are bad rows, which a run may skip.
"""

from flanjax.data.instructions import Instruct, instruction_task, published
from flanjax.data.tasks import Dataset, Download, Family, TextTask, dataset_folder

_FILES = "https://raw.githubusercontent.com/XueFuzhao/InstructionWild/main"

DATASETS = (
    Dataset(
        name="instruction_wild",
        title="InstructionWild: instructions of real users, and 52K examples generated from 429 of them",
        paper="Ni et al. 2023, Instruction in the Wild: A User-based Instruction Dataset",
        licence="for non-commercial research",
        page="https://github.com/XueFuzhao/InstructionWild",
        size="52,191 examples in English and 51,504 in Chinese; 429 seed instructions; 110K instructions of users",
        # The files with answers are on Google Drive; the page links to them.
        downloads=tuple(
            Download(url=f"{_FILES}/{file}", file=file)
            for file in ("data/seed_prompts_en.jsonl", *(f"data_v2/user_{part}.jsonl" for part in range(1, 5)))
        ),
        tested_on="published files of the instructions; hand-made file of the published schema for the answered ones",
    ),
)


def family(data_dir: str = "", style: str = "alpaca") -> Family:
    """The tasks and mixtures of the module.

    Args:
        data_dir: a folder or an address of one.
        style: "alpaca" or "plain".

    Raises:
        FlanjaxError: there is no such style.
    """
    folder = dataset_folder("instruction_wild", data_dir)
    prompt = Instruct(style=style, output="")
    answered = [
        instruction_task(
            name,
            published(folder, f"instinwild_{language}.json", f"data/instinwild_{language}.json"),
            Instruct(style=style),
            total=total,
        )
        for name, language, total in (("instruction_wild", "en", 52_191), ("instruction_wild_zh", "ch", 51_504))
    ]
    seeds = TextTask(
        name="instruction_wild_seed",
        source={"test": published(folder, "data/seed_prompts_en.jsonl", "seed_prompts_en.jsonl")},
        render=prompt,
        examples={"test": 429},
    )
    users = TextTask(
        name="instruction_wild_v2",
        source={"test": published(folder, "data_v2/user_*.jsonl", "user_*.jsonl")},
        render=prompt,
    )
    mixtures = {task.name: {task.name: 1.0} for task in answered}
    return Family(tasks=[*answered, seeds, users], mixtures=mixtures, datasets=DATASETS)
