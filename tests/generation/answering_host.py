"""One of several processes that answer together, the rows of the engine spread over all their devices.

What each of them answers is printed as JSON.

python tests/generation/answering_host.py localhost:1234 2 0        # process 0 of 2
"""

import json
import sys

import jax

from flanjax.generation.decoding import DecodingConfig
from flanjax.generation.generate import generate
from flanjax.models.config import Compute, T5Config
from flanjax.models.decoder_config import DecoderConfig
from flanjax.models.model import ModelConfig, abstract_params, init_params, logical_axes
from flanjax.sharding.hosts import join
from flanjax.sharding.mesh import MeshConfig, make_mesh
from flanjax.sharding.rules import param_shardings

SIZES = {"vocab_size": 64, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}
MODELS: dict[str, ModelConfig] = {
    "t5": T5Config(**SIZES, num_encoder_layers=1, num_decoder_layers=1, tied_head=False),
    "decoder": DecoderConfig(**SIZES, num_layers=1, num_kv_heads=2, init_stddev=0.3),
}
INPUTS = [[2, 5, 6, 1], [2, 7], [2, 9, 3, 3, 8, 4, 4, 10, 11, 12], [2, 9, 9], [30, 1]] * 2
WAYS = {
    "t5": {"drawn": DecodingConfig(max_new_tokens=9, temperature=0.9, top_p=0.9, seed=4)},
    "decoder": {
        "greedy": DecodingConfig(max_new_tokens=20, eos_ids=(1, 17)),
        "beams": DecodingConfig(max_new_tokens=9, num_beams=2),
    },
}


def answers(mesh: jax.sharding.Mesh | None = None) -> dict[str, list[list[int]]]:
    """What each model says to the inputs in each way."""
    found = {}
    for name, config in MODELS.items():
        params = init_params(config, 1)
        if mesh is not None:
            shardings, _ = param_shardings(logical_axes(config), abstract_params(config), mesh)
            params = jax.jit(lambda config=config: init_params(config, 1), out_shardings=shardings)()
        for way, decoding in WAYS[name].items():
            found[f"{name} {way}"] = generate(config, Compute(), params, INPUTS, decoding, batch_rows=8)
    return found


def main(address: str, count: int, index: int) -> None:
    join(address, count, index)
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1))
    with jax.set_mesh(mesh):
        print(json.dumps(answers(mesh)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
