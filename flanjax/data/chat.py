r"""Chats as tokens: the text of a template, and which of its tokens are the assistant's.

    chat = Chat(find_template("chatml", vocabulary), vocabulary)
    chat.examples([user "Hi", assistant "Hello!", user "Bye", assistant "See you."])

gives one example. The template's text is tokenised once, as a whole; in brackets what counts in the loss:

    inputs     <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n
    targets    [Hello!<|im_end|>]\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[See you.<|im_end|>]\n

Where a template marks the assistant's words itself (`{% generation %}`), these are they. Any other template is asked
what it makes of the conversation before a reply, with the cue for one, and after it: both must be beginnings of the
whole, and the reply is what lies between, up to the last token of control in it. A template that writes earlier turns
in another way when later ones follow, as those of thinking models do, gives an example for each reply. One whose cue is
not how the reply begins is refused. A token counts where it begins in a reply.

A vocabulary of encoder-decoders (`Vocabulary.separate_inputs`) gives an example for each reply: what comes before it,
with its cue, is for the encoder.
"""

import contextlib
import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from flanjax.data.chat_templates import OWN, ChatTemplate, ChatTemplateError, Message, control_like, find_template
from flanjax.data.sources import BadRow
from flanjax.data.tasks import Turn
from flanjax.data.vocabularies import Vocabulary

Span = tuple[int, int]  # characters, from the first to the one after the last
_PROBE = (Turn(role="user", text="a"), Turn(role="assistant", text="b"))


@dataclass(frozen=True, kw_only=True)
class ChatExample:
    """The tokens of a conversation.

    Attributes:
        inputs: ids up to the first reply that is learnt.
        targets: the ids from there on.
        weights: for each target whether it counts in the loss, 1 or 0.
        prompt: the text of the inputs.
        reply: what the assistant says in the first reply that is learnt.
        pieces: for each token the part of the text it stands for.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    weights: tuple[int, ...]
    prompt: str
    reply: str
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Chat:
    """Conversations under a template, for a vocabulary."""

    template: ChatTemplate
    vocabulary: Vocabulary

    def takes_whole(self, split: str) -> bool:
        """Whether a conversation is one example; if not, each of its replies is, which is what evaluation asks for."""
        return split == "train" and not self.vocabulary.separate_inputs

    def examples(self, turns: Sequence[Turn], place: str = "the conversation") -> list[ChatExample]:
        """The examples of a conversation: one, or one for each reply; none where no reply is to be learnt.

        An empty reply is never learnt.

        Raises:
            BadRow: a turn has in its text what is read as a token of control, or the template refuses the conversation.
            ChatTemplateError: the template cannot tell the assistant's words.
        """
        learnt = [at for at, turn in enumerate(turns) if turn.learnt and turn.role == "assistant" and turn.text.strip()]
        if not learnt:
            return []
        self._refuse_control_tokens(turns, place)
        turns = turns[: learnt[-1] + 1]
        try:
            if self.vocabulary.separate_inputs:
                return [self._pair(turns[: at + 1]) for at in learnt]
            text, spans = self._spans(turns)
            if spans is not None:
                return [self._example(text, [spans[at] for at in learnt], turns[learnt[0]].text)]
            alone = [(at, *self._spans(turns[: at + 1], unrolled=True)) for at in learnt]
            return [self._example(text, [spans[at]], turns[at].text) for at, text, spans in alone if spans is not None]
        except ChatTemplateError as error:
            if isinstance(error, _CannotTell):
                raise
            raise BadRow(f"{place}: {error}") from error

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where the assistant is to speak.

        Raises:
            BadRow: a message has in its text what is read as a token of control.
            ChatTemplateError: the template refuses the conversation.
        """
        said = [Turn(role=str(message.get("role")), text=str(message.get("content"))) for message in messages]
        self._refuse_control_tokens(said, "the conversation")
        text = self.template.render(messages, add_generation_prompt=True)
        if self.vocabulary.separate_inputs:
            return self.vocabulary.as_inputs(self.vocabulary.encode(text))
        return [id_ for id_, _, _ in self.vocabulary.encode_rendered(text)]

    @functools.cached_property
    def turn_end(self) -> int | None:
        """The token of control that ends a turn of the assistant; None where there is none, or it cannot be told.

        It cannot where a reply does not begin with the cue for it, as in templates whose cue opens a thought. They
        cannot be trained with, but they can be answered in: such a model's other ends of answers say where to stop.
        """
        if self.vocabulary.separate_inputs:
            return None
        try:
            (example,) = self.examples(_PROBE)
        except (BadRow, ChatTemplateError):
            return None
        *_, last = (id_ for id_, weight in zip(example.targets, example.weights, strict=True) if weight)
        return last if last in self.vocabulary.control_tokens.values() else None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """What an answer may end with: the token of control that ends a turn, and the end of a sequence."""
        ends = (self.turn_end, self.vocabulary.eos_id)
        return tuple(dict.fromkeys(end for end in ends if end is not None))

    def check(self) -> list[str]:
        """What a person should know of the template with this vocabulary, a line each; empty where they fit.

        Raises:
            ChatTemplateError: it fails for one question and its answer, or begins a text with BOS twice.
        """
        template, vocabulary = self.template, self.vocabulary
        try:
            (example,) = self.examples(_PROBE)
        except BadRow as error:
            raise ChatTemplateError(str(error)) from error
        if vocabulary.separate_inputs:
            return []
        bos, first = vocabulary.bos_id, (*example.inputs, *example.targets)[:2]
        if bos is not None and first == (bos, bos):
            raise ChatTemplateError(
                f"chat template {template.name!r} begins every text with BOS twice, "
                f"{vocabulary.special_tokens['bos_token'] * 2}: take one of them out"
            )
        notes = []
        if vocabulary.prefix and first[:1] != vocabulary.prefix[:1]:
            notes.append("the tokenizer puts BOS before every text, the template does not: chats begin without it")
        if absent := [name for name in template.named_tokens if name not in vocabulary.special_tokens]:
            notes.append(f"it writes {', '.join(absent)}, which the tokenizer does not have: nothing stands there")
        if unknown := [token for token in template.control_tokens if token not in vocabulary.control_tokens]:
            notes.append(f"it writes {', '.join(unknown)}, which the tokenizer reads as text, not as tokens of control")
        counted = [id_ for id_, weight in zip(example.targets, example.weights, strict=True) if weight]
        if counted[-1] not in vocabulary.control_tokens.values():
            notes.append("no token of control ends a reply: the model does not learn where to stop")
        with contextlib.suppress(ChatTemplateError):  # it may take one question alone
            if self._spans((*_PROBE, *_PROBE))[1] is None:
                notes.append("it writes earlier turns in another way when later ones follow: each reply is an example")
        own = vocabulary.own_templates.get("default")
        if template.name != OWN and own is not None and own != template.text:
            notes.append(
                "the tokenizer has a template of its own, which is another: a model trained on that one relearns"
            )
        return [f"chat template {template.name!r}: {note}" for note in notes]

    def _refuse_control_tokens(self, turns: Sequence[Turn], place: str) -> None:
        """Text that would be read as a token of control could end a turn or begin another one."""
        if self._control is None:
            return
        for number, turn in enumerate(turns, 1):
            if found := self._control.search(turn.text):
                raise BadRow(
                    f"{place}: turn {number}, of {turn.role}, has {found[0]!r} in its text, which is read as a "
                    "token of control: take it out (ON_BAD_ROW=skip leaves such rows out)"
                )

    @functools.cached_property
    def _control(self) -> re.Pattern[str] | None:
        """What must not be said: what the tokenizer reads as control, and what the template writes to look like it."""
        tokens = {*self.vocabulary.control_tokens, *self.template.control_tokens}
        for probe in (_PROBE, (Turn(role="system", text="s"), *_PROBE)):
            with contextlib.suppress(ChatTemplateError):  # not each has a place for a system text
                tokens |= set(control_like(self.template.render(_messages(probe))))
        return re.compile("|".join(map(re.escape, sorted(tokens)))) if tokens else None

    def _pair(self, turns: Sequence[Turn]) -> ChatExample:
        """The reply that a conversation ends with, for a decoder beside an encoder."""
        prompt, reply = self.template.render(_messages(turns[:-1]), add_generation_prompt=True), turns[-1].text.strip()
        inputs, targets = self.vocabulary.pieces(prompt), self.vocabulary.pieces(reply)
        ids = self.vocabulary.as_targets([id_ for id_, _ in targets])
        before, after = ([""] * len(side) for side in (self.vocabulary.prefix, self.vocabulary.suffix))
        pieces = (*before, *(part for _, part in inputs), *after, *(part for _, part in targets), "")
        return ChatExample(
            inputs=tuple(self.vocabulary.as_inputs([id_ for id_, _ in inputs])),
            targets=tuple(ids),
            weights=(1,) * len(ids),
            prompt=prompt,
            reply=reply,
            pieces=pieces,
        )

    def _spans(self, turns: Sequence[Turn], *, unrolled: bool = False) -> tuple[str, dict[int, Span] | None]:
        """The text, and by the number of a turn where each reply is in it; None where earlier turns are rewritten.

        With `unrolled` it is the last turn that is wanted.
        """
        messages = _messages(turns)
        spoken = [at for at, turn in enumerate(turns) if turn.role == "assistant"]
        if self.template.marks_replies:
            text, marked = self.template.render_marked(messages)
            if len(marked) != len(spoken):
                raise _CannotTell(
                    f"chat template {self.template.name!r} marks {len(marked)} replies of {len(spoken)}: it has to put "
                    "{% generation %} around each turn of the assistant"
                )
            return text, dict(zip(spoken, marked, strict=True))
        text, found = self.template.render(messages), {}
        for at in spoken[-1:] if unrolled else spoken:
            if not turns[at].text.strip():
                continue
            before = self.template.render(messages[:at], add_generation_prompt=True)
            after = self.template.render(messages[: at + 1])
            if not (after.startswith(before) and text.startswith(after)):
                if not unrolled:
                    return text, None
                raise _CannotTell(
                    f"chat template {self.template.name!r}: a reply does not begin with the cue for it "
                    f"({_tail(before)!r} is not how the conversation with the reply begins, {_tail(after)!r}), so "
                    "that its words cannot be told: mark them with {% generation %}"
                )
            found[at] = (len(before), len(after))
        return text, found

    def _example(self, text: str, spans: Sequence[Span], reply: str) -> ChatExample:
        """The tokens of a text of which some spans are learnt."""
        tokens = self.vocabulary.encode_rendered(text)
        weights = [0] * len(tokens)
        control = frozenset(self.vocabulary.control_tokens.values())
        for first, end in spans:
            inside = [number for number, (_, start, _) in enumerate(tokens) if first <= start < end]
            if not self.template.marks_replies:
                # What stands after the end of a turn, mostly a line end, is the template's.
                ends = [number for number in inside if tokens[number][0] in control]
                inside = [number for number in inside if not ends or number <= ends[-1]]
            if not inside:
                raise ChatTemplateError(
                    f"chat template {self.template.name!r}: no token begins in the reply at {_tail(text[:end])!r}"
                )
            for number in inside:
                weights[number] = 1
        cut = weights.index(1)
        ids, ends_at = [id_ for id_, _, _ in tokens], [0]
        for _, _, end in tokens:
            ends_at.append(max(end, ends_at[-1]))
        pieces = [text[start:end] for start, end in itertools.pairwise(ends_at)]
        return ChatExample(
            inputs=tuple(ids[:cut]),
            targets=tuple(ids[cut:]),
            weights=tuple(weights[cut:]),
            prompt=text[: spans[0][0]],
            reply=reply.strip(),
            pieces=tuple(pieces),
        )


def own_chat(vocabulary: Vocabulary) -> Chat | None:
    """Chats under the template that a tokenizer brings; of a run, that of its training. None where there is none.

    Raises:
        ChatTemplateError: the template does not parse.
    """
    if "default" not in vocabulary.own_templates:
        return None
    template = find_template(OWN, vocabulary)
    assert template is not None
    return Chat(template, vocabulary)


class _CannotTell(ChatTemplateError):
    """The template's fault, whatever the conversation."""


def _messages(turns: Sequence[Turn]) -> list[Message]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _tail(text: str) -> str:
    return text if len(text) <= 80 else "..." + text[-80:]
