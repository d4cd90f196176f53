import jax.numpy as jnp
import numpy as np
import pytest

from flanjax.models.positions import RelativePositionBias, relative_position_buckets

DISTANCES = np.arange(-1100, 1101)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 12), (16, 64), (64, 1000)])
def test_buckets_equal_transformers(bidirectional, buckets, max_distance):
    torch = pytest.importorskip("torch")
    from transformers.models.t5.modeling_t5 import T5Attention

    theirs = T5Attention._relative_position_bucket(torch.tensor(DISTANCES), bidirectional, buckets, max_distance)
    ours = relative_position_buckets(
        jnp.asarray(DISTANCES), bidirectional=bidirectional, buckets=buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(np.asarray(ours), theirs.numpy())


def test_published_buckets():
    """The formula's corners at T5's own 32 buckets and distance 128."""
    r = jnp.array([0, -1, -7, -8, -127, -500, 1, 7, 8, 500])
    assert relative_position_buckets(r, bidirectional=True).tolist() == [0, 1, 7, 8, 15, 15, 17, 23, 24, 31]
    assert relative_position_buckets(r, bidirectional=False).tolist() == [0, 1, 7, 8, 31, 31, 0, 0, 0, 0]


def test_bias_depends_on_the_distance_alone(v1_1):
    table = RelativePositionBias(v1_1, bidirectional=True)
    table.rel_embedding.set_value(jnp.arange(16.0).reshape(2, 8))
    positions = jnp.arange(10)
    bias = table(positions, positions)
    assert bias.shape == (1, 2, 10, 10)
    np.testing.assert_array_equal(bias[..., 1:, 1:], bias[..., :-1, :-1])
    np.testing.assert_array_equal(table(positions[4:5], positions), bias[:, :, 4:5])
