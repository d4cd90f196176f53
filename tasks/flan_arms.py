"""The tasks of a Flan dataset: one for each way, or arm, in which the Flan 2022 mixtures show an instance of it.

    arm_tasks("sst2", DATASETS["sst2"], source)      sst2_zsopt, sst2_zsnoopt, sst2_fsopt_five, ...

All arms of a dataset read the same rows and draw their exemplars from one pool of its first training rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flanjax.tasks.flan_datasets_base import FlanDataset
from flanjax.tasks.flan_published import published_types
from flanjax.tasks.flan_wording import task_type
from flanjax.tasks.scoring import super_ni_scores

from flanjax.data.exemplars import Exemplars
from flanjax.data.options import DISTINCT, RELEASE
from flanjax.data.prompts import Arm, ArmSettings, TaskType, render_arm
from flanjax.data.published_templates import flan_key
from flanjax.data.tasks import Context, Row, Rows, Text, TextTask, take
from flanjax.errors import FlanjaxError

Instance = Mapping[str, Any]
ToInstance = Callable[[Row, str], Instance | None]

ARMS = tuple(Arm)
SETTINGS = ArmSettings()
STYLES = {"distinct": DISTINCT, "release": RELEASE}


def arm_settings(styles: str) -> ArmSettings:
    """The settings with option styles of this name.

    Raises:
        FlanjaxError: there are none.
    """
    if styles not in STYLES:
        raise FlanjaxError(f"styles={styles!r}: give one of {', '.join(STYLES)}")
    return ArmSettings(styles=STYLES[styles])


@dataclass(frozen=True, kw_only=True)
class Published:
    """A copy of FLAN's own templates (`flanjax.tasks.flan_published`), which is not read before a row is rendered.

    Attributes:
        templates: flan/v2/templates.py; "" for the project's own wording.
        branched: flan/v2/flan_templates_branched.py.
    """

    templates: str = ""
    branched: str = ""

    def type(self, key: str | None, own: TaskType) -> TaskType:
        """The wording of a task key; the project's own where there is none that fits its instances.

        Raises:
            PromptError: a file is none of templates.
        """
        return _types(self).get(key, own) if self.templates and key else own


@functools.lru_cache(maxsize=4)
def _types(published: Published) -> dict[str, TaskType]:
    return published_types(published.templates, branched=published.branched)


@dataclass(frozen=True, kw_only=True)
class ArmRender:
    """A render function: a row to its instance, and that as the arm shows it.

    Where the target is the instance's answer, all of its accepted `answers` become references.

    Attributes:
        type: the project's wording.
        key: that of FLAN's.
        published: FLAN's wording, if that is wanted.
        instance: (row, place) -> the instance.
        arm: how it is shown.
        exemplars: what few-shot arms draw from.
        settings: what the arms of a run have in common.
    """

    type: TaskType
    key: str | None
    published: Published
    instance: ToInstance
    arm: Arm
    exemplars: Exemplars
    settings: ArmSettings

    def __call__(self, row: Row, context: Context) -> Text | None:
        """The text of a row; None for one that is no instance, or beside which no exemplar fits."""
        instance = self.instance(row, context.place)
        if instance is None:
            return None
        pool = () if self.arm.zero_shot else self.exemplars.pool(context.seed)
        type = self.published.type(self.key, self.type)
        text = render_arm(type, instance, context, self.arm, pool, settings=self.settings)
        if text is None or text.targets != instance["answer"]:
            return text
        return dataclasses.replace(text, references=tuple(instance.get("answers", ())))


@dataclass(frozen=True, kw_only=True)
class FirstRows:
    """As many of the first rows as exemplars are drawn from: every process reads them, and there may be millions."""

    rows: Rows
    count: int = 100_000

    def __call__(self, seed: int) -> Iterator[tuple[str, Row]]:
        """(place, row) pairs."""
        return take(self.rows(seed), self.count)


def arm_tasks(
    name: str,
    dataset: FlanDataset,
    source: Mapping[str, Rows],
    *,
    settings: ArmSettings = SETTINGS,
    published: Published = Published(),
    arms: Iterable[Arm] = ARMS,
) -> list[TextTask]:
    """The tasks `<name>_<arm>` of a dataset.

    Args:
        name: what their names begin with.
        dataset: whose.
        source: its splits; exemplars come from "train".
        settings: what the arms have in common.
        published: FLAN's own wording, if that is wanted.
        arms: which there are to be.
    """
    exemplars = Exemplars(source=FirstRows(rows=source["train"]), to_instance=dataset.instance)
    key = flan_key(dataset.name) if dataset.key == "" else dataset.key
    type = task_type(dataset.type)
    return [
        TextTask(
            name=f"{name}_{arm}",
            source=source,
            render=ArmRender(
                type=type,
                key=key,
                published=published,
                instance=dataset.instance,
                arm=arm,
                exemplars=exemplars,
                settings=settings,
            ),
            metric_fns=(super_ni_scores,),
        )
        for arm in arms
    ]
