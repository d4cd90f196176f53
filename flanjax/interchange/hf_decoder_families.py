"""The families of decoders that Hugging Face folders hold, each a few lines over `DecoderConfig`.

A family says how its `config.json` is read and written, and what it calls its tensors; the function that they compute
is `flanjax.models.decoder` for all. Llama 2 and 3 (SmolLM too), Mistral, Qwen 2, 2.5 and 3, Gemma 1 and 2, GPT-2,
GPT-NeoX (Pythia), OPT, BLOOM, Falcon, GPT-BigCode, GPT-J, CodeGen, MOSS, Phi, GLM-4 and ChatGLM2 are known. Meanings
and defaults of the keys are those of the transformers library, ChatGLM2's and MOSS's those of the code that they come
with.
"""

import dataclasses
from collections.abc import Callable, Mapping

from flanjax.interchange import hf_decoder_glm as glm
from flanjax.interchange import hf_decoder_gpt as gpt
from flanjax.interchange import hf_decoder_gptj as gptj
from flanjax.interchange import hf_decoder_llama as llama
from flanjax.interchange.hf_decoder_keys import Keys
from flanjax.interchange.hf_decoder_llama import Fields
from flanjax.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` is read and written.

    Attributes:
      architecture: the class in transformers.
      prefix: what all tensors but the head begin with; some published files leave it out.
      read: `config.json` to fields of `DecoderConfig`.
      write: back again, the keys that `read` knows.
      modules: path in the parameters, without the leaf, to the module's name; `{}` is the layer. Where there is a
        name for `query+key+value`, or for `wi_0+wi_1`, they lie in one tensor in that order.
      groups: equal groups of which such a tensor consists, each with a share of the first and of the others in that
        order: 1 where all queries come first, the number of key heads where those of each head are together.
      conv1d: whether the layers' kernels lie [in, out], as here, and not as torch's linear layers have them.
      tied: transformers' default of `tie_word_embeddings`.
      vocab_key: what `config.json` calls the number of rows of the embedding.
    """

    architecture: str
    prefix: str
    read: Callable[[Keys], Fields]
    write: Callable[[DecoderConfig], Fields]
    modules: Callable[[DecoderConfig], dict[str, str]]
    groups: Callable[[DecoderConfig], int] = lambda _: 1
    conv1d: bool = False
    tied: bool = False
    vocab_key: str = "vocab_size"


def _key_heads(config: DecoderConfig) -> int:
    return config.num_kv_heads


def _llama_family(
    name: str, read: Callable[[Keys], Fields], write: Callable[[DecoderConfig], Fields], *, tied: bool = False
) -> Family:
    return Family(
        architecture=f"{name}ForCausalLM",
        prefix="model.",
        read=read,
        write=write,
        modules=llama.llama_modules,
        tied=tied,
    )


def _codegen_family(name: str) -> Family:
    return Family(
        architecture=f"{name}ForCausalLM",
        prefix="transformer.",
        read=gptj.read_codegen,
        write=gptj.write_gptj,
        modules=gptj.codegen_modules,
        groups=lambda _: gptj.CODEGEN_PARTS,
    )


FAMILIES: Mapping[str, Family] = {
    "llama": _llama_family("Llama", llama.read_llama, llama.write_llama),
    "mistral": _llama_family("Mistral", llama.read_mistral, llama.write_mistral),
    "qwen2": _llama_family("Qwen2", llama.read_qwen2, llama.write_qwen),
    "qwen3": _llama_family("Qwen3", llama.read_qwen3, llama.write_qwen3),
    "gemma": _llama_family("Gemma", llama.read_gemma, llama.write_gemma, tied=True),
    "gemma2": _llama_family("Gemma2", llama.read_gemma2, llama.write_gemma2, tied=True),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        prefix="transformer.",
        read=gpt.read_gpt2,
        write=gpt.write_gpt2,
        modules=gpt.gpt2_modules,
        conv1d=True,
        tied=True,
    ),
    "gpt_bigcode": Family(
        architecture="GPTBigCodeForCausalLM",
        prefix="transformer.",
        read=gpt.read_gpt_bigcode,
        write=gpt.write_gpt_bigcode,
        modules=gpt.gpt2_modules,
        groups=_key_heads,
        tied=True,
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        prefix="gpt_neox.",
        read=gpt.read_gpt_neox,
        write=gpt.write_gpt_neox,
        modules=gpt.gpt_neox_modules,
        groups=_key_heads,
    ),
    "opt": Family(
        architecture="OPTForCausalLM",
        prefix="model.",
        read=gpt.read_opt,
        write=gpt.write_opt,
        modules=gpt.opt_modules,
        tied=True,
    ),
    "bloom": Family(
        architecture="BloomForCausalLM",
        prefix="transformer.",
        read=gpt.read_bloom,
        write=gpt.write_bloom,
        modules=gpt.bloom_modules,
        groups=_key_heads,
        tied=True,
    ),
    "falcon": Family(
        architecture="FalconForCausalLM",
        prefix="transformer.",
        read=gpt.read_falcon,
        write=gpt.write_falcon,
        modules=gpt.falcon_modules,
        groups=_key_heads,
        tied=True,
    ),
    "gptj": Family(
        architecture="GPTJForCausalLM",
        prefix="transformer.",
        read=gptj.read_gptj,
        write=gptj.write_gptj,
        modules=gptj.gptj_modules,
    ),
    "codegen": _codegen_family("CodeGen"),
    "moss": _codegen_family("Moss"),
    "phi": Family(
        architecture="PhiForCausalLM", prefix="model.", read=gpt.read_phi, write=gpt.write_phi, modules=gpt.phi_modules
    ),
    "glm": Family(
        architecture="GlmForCausalLM", prefix="model.", read=glm.read_glm, write=glm.write_glm, modules=glm.glm_modules
    ),
    "chatglm": Family(
        architecture="ChatGLMModel",
        prefix="transformer.",
        read=glm.read_chatglm,
        write=glm.write_chatglm,
        modules=glm.chatglm_modules,
        vocab_key="padded_vocab_size",
    ),
}
