"""The run's vocabulary for tasks written in seqio, whose preprocessors tokenise inside of TensorFlow.

seqio_vocabulary(Vocabulary.from_file("spiece.model"))       seqio's own SentencePieceVocabulary
seqio_vocabulary(Vocabulary.from_file("tokenizer.json"))     a seqio.Vocabulary over the `tokenizers` library
"""

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from flanjax.data.vocabularies import SentencePieces, Vocabulary


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """The vocabulary as seqio takes it; its ids are those of `vocabulary.encode`."""
    if isinstance(vocabulary, SentencePieces):
        return seqio.SentencePieceVocabulary(str(vocabulary.path), vocabulary.extra_ids)
    return SeqioVocabulary(vocabulary)


class SeqioVocabulary(seqio.Vocabulary):
    """Any vocabulary of ours as one of seqio's; in TensorFlow's graph it is called back in Python.

    Attributes:
        vocabulary: ours.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(extra_ids=0)
        self.vocabulary = vocabulary

    @property
    def bos_id(self) -> int | None:
        """The beginning of a sequence."""
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """The end of a sequence."""
        return self.vocabulary.eos_id

    @property
    def unk_id(self) -> int | None:
        """The unknown piece."""
        return self.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.vocabulary.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        if s.shape.rank:  # seqio asks for ragged tokens of several texts at a time
            return tf.map_fn(self._encode_tf, s, fn_output_signature=tf.RaggedTensorSpec([None], tf.int32, 0))

        def encode(text: bytes | np.ndarray) -> np.ndarray:
            content: bytes = np.asarray(text).item()
            return np.array(self.vocabulary.encode(content.decode(errors="replace")), dtype=np.int32)

        return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(tokens: np.ndarray) -> bytes:
            return self.vocabulary.decode(tokens.tolist()).encode()

        return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), [])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and other.vocabulary.identity == self.vocabulary.identity

    def __hash__(self) -> int:
        return hash(self.vocabulary.identity)
