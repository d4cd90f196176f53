"""Every published architecture parses from its gin file and has its published number of parameters."""

import math
import pathlib

import gin
import jax
import pytest

from flanjax.doors import GinSources, configure
from flanjax.models import decoder, t5
from flanjax.models.config import T5Config
from flanjax.models.decoder_config import DecoderConfig, Rotary

MODELS = pathlib.Path(__file__).resolve().parents[2] / "gin_configs" / "models"

# Parameters of the published checkpoints, the shared embedding counted once (transformers `num_parameters`).
V1_0 = {"small": 60_506_624, "base": 222_903_552, "large": 737_668_096, "3b": 2_851_598_336, "11b": 11_307_321_344}
V1_1 = {"small": 76_961_152, "base": 247_577_856, "large": 783_150_080, "xl": 2_849_757_184, "xxl": 11_135_332_352}
PUBLISHED = {f"t5_1_0_{size}": count for size, count in V1_0.items()}
for family in ("t5_1_1", "flan_t5", "t5_1_1_lm100k"):
    PUBLISHED |= {f"{family}_{size}": count for size, count in V1_1.items()}
PUBLISHED |= {"t0_3b": V1_1["xl"], "t0_11b": V1_1["xxl"]}
PUBLISHED |= {
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
}
# What transformers counts for the same configuration (tests/interchange/test_relatives.py).
PUBLISHED |= {
    "byt5_large": 1_228_183_552,
    "byt5_xl": 3_737_801_728,
    "byt5_xxl": 12_906_899_328,
    "umt5_small": 306_601_984,
    "umt5_base": 592_043_520,
    "umt5_xl": 3_768_356_864,
    "umt5_xxl": 12_972_531_712,
    "ul2_20b": 19_591_209_984,
    "flan_ul2": 19_591_209_984,
}
# Likewise; a tied head counted once.
DECODERS = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama_2_7b": 6_738_415_616,
    "llama_2_13b": 13_015_864_320,
    "llama_2_70b": 68_976_648_192,
    "llama_3_8b": 8_030_261_248,
    "llama_3_1_8b": 8_030_261_248,
    "llama_3_70b": 70_553_706_496,
    "llama_3_1_70b": 70_553_706_496,
    "llama_3_1_405b": 405_853_388_800,
    "llama_3_2_1b": 1_235_814_400,
    "llama_3_2_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "qwen_2_5_0_5b": 494_032_768,
    "qwen_2_5_1_5b": 1_543_714_304,
    "qwen_2_5_3b": 3_085_938_688,
    "qwen_2_5_7b": 7_615_616_512,
    "qwen_2_5_14b": 14_770_033_664,
    "qwen_2_5_32b": 32_763_876_352,
    "qwen_2_5_72b": 72_706_203_648,
    "qwen_3_0_6b": 596_049_920,
    "qwen_3_1_7b": 1_720_574_976,
    "qwen_3_4b": 4_022_468_096,
    "qwen_3_8b": 8_190_735_360,
    "qwen_3_14b": 14_768_307_200,
    "qwen_3_32b": 32_762_123_264,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma_2_2b": 2_614_341_888,
    "gemma_2_9b": 9_241_705_984,
    "gemma_2_27b": 27_227_128_320,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1_4b": 1_414_647_808,
    "pythia_2_8b": 2_775_208_960,
    "pythia_6_9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320,
    "gpt_neox_20b": 20_554_567_680,
    "opt_125m": 125_239_296,
    "opt_350m": 331_196_416,
    "opt_1_3b": 1_315_758_080,
    "opt_2_7b": 2_651_596_800,
    "opt_6_7b": 6_658_473_984,
    "opt_13b": 12_853_473_280,
    "opt_30b": 29_974_540_288,
    "opt_66b": 65_719_701_504,
    "opt_175b": 174_604_468_224,
    "bloom_560m": 559_214_592,
    "bloom_1b1": 1_065_314_304,
    "bloom_1b7": 1_722_408_960,
    "bloom_3b": 3_002_557_440,
    "bloom_7b1": 7_069_016_064,
    "bloom_176b": 176_247_271_424,
    "falcon_rw_1b": 1_311_625_216,
    "falcon_rw_7b": 7_516_020_736,
    "gptj_6b": 6_050_882_784,
    "codegen_350m": 356_712_448,
    "codegen_2b": 2_779_356_160,
    "codegen_6b": 7_064_213_504,
    "codegen_16b": 16_032_155_648,
    "moss_16b": 16_717_980_160,
    "falcon_7b": 6_921_720_704,
    "falcon_11b": 11_102_822_400,
    "falcon_40b": 41_303_293_952,
    "falcon_180b": 179_522_565_120,
    "starcoder": 15_517_456_384,
    "starcoderbase_1b": 1_137_207_296,
    "starcoderbase_3b": 3_043_311_104,
    "starcoderbase_7b": 7_327_263_232,
    "phi_1": 1_418_270_720,
    "phi_1_5": 1_418_270_720,
    "phi_2": 2_779_683_840,
    "chatglm2_6b": 6_243_584_000,
    "smollm_135m": 134_515_008,
    "smollm_360m": 361_821_120,
    "smollm_1_7b": 1_711_376_384,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
}


def read_config(name: str) -> T5Config:
    configure(GinSources(files=(str(MODELS / f"{name}.gin"),)), [T5Config])
    return gin.get_configurable("T5Config")()


def read_decoder(name: str) -> DecoderConfig:
    configure(GinSources(files=(str(MODELS / f"{name}.gin"),)), [DecoderConfig, Rotary])
    return gin.get_configurable("DecoderConfig")()


@pytest.fixture(autouse=True)
def clear_gin():
    yield
    gin.clear_config()


def test_every_file_is_listed_here():
    assert {path.stem for path in MODELS.glob("*.gin")} == {*PUBLISHED, *DECODERS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name):
    shapes = jax.tree.leaves(t5.abstract_params(read_config(name)))
    assert sum(math.prod(leaf.shape) for leaf in shapes) == PUBLISHED[name]


@pytest.mark.parametrize("name", DECODERS)
def test_parameter_count_of_a_decoder_is_the_published_one(name):
    shapes = jax.tree.leaves(decoder.abstract_params(read_decoder(name)))
    assert sum(math.prod(leaf.shape) for leaf in shapes) == DECODERS[name]


def test_the_same_size_is_the_same_model():
    for size in V1_1:
        assert read_config(f"flan_t5_{size}") == read_config(f"t5_1_1_{size}") == read_config(f"t5_1_1_lm100k_{size}")
