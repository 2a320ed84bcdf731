"""Heads: what comes out, what they cost, what they refuse."""

import pytest
import torch

from eenet.errors import ShapeError
from eenet.models import conv_head, grid_linear, pooled_linear, token_head


@pytest.mark.parametrize("factory", [pooled_linear, grid_linear(2), conv_head(), conv_head((1, 2, 2), width=1.5)])
def test_image_heads_return_logits(factory) -> None:
    assert factory((2, 6, 8, 8), 5)(torch.randn(4, 6, 8, 8)).shape == (4, 5)


def test_pooled_linear_is_the_mean_then_a_linear_layer() -> None:
    head = pooled_linear((1, 3, 4, 4), 2)
    features = torch.randn(5, 3, 4, 4)
    linear = head[-1]
    torch.testing.assert_close(head(features), features.mean(dim=(2, 3)) @ linear.weight.T + linear.bias)


def test_token_head_reads_the_first_token_only() -> None:
    head = token_head((1, 4, 6), 3)
    tokens = torch.randn(2, 4, 6)
    changed = tokens.clone()
    changed[:, 1:] = 0
    assert torch.equal(head(tokens), head(changed))
    assert head(tokens).shape == (2, 3)


def test_every_strided_convolution_of_conv_head_multiplies_the_channels() -> None:
    head = conv_head((2, 1, 2), width=2)((1, 4, 16, 16), 10)
    assert [m.out_channels for m in head.modules() if isinstance(m, torch.nn.Conv2d)] == [8, 8, 16]
    assert head[-1][-1].in_features == 16


def test_refuses_other_shapes_and_settings() -> None:
    with pytest.raises(ShapeError, match=r"shape \(2, 3\) does not fit pooled_linear"):
        pooled_linear((2, 3), 10)
    with pytest.raises(ShapeError, match="does not fit conv_head"):
        conv_head()((2, 3, 4), 10)
    with pytest.raises(ShapeError, match="does not fit token_head"):
        token_head((2, 3), 10)
    with pytest.raises(ShapeError, match="strides"):
        conv_head(())
    with pytest.raises(ShapeError, match="width"):
        conv_head((2,), width=0)
    with pytest.raises(ShapeError, match="size 0"):
        grid_linear(0)
