"""Heads: what comes out, what they cost, what they refuse."""

import pytest
import torch

from eenet.errors import ShapeError
from eenet.models import (
    MultiExitModel,
    attention_linear,
    branch_head,
    conv_head,
    grid_linear,
    mixed_linear,
    pooled_linear,
    residual_head,
    token_head,
)
from eenet.running.measuring import measure_flops

IMAGE_HEADS = [
    pooled_linear,
    grid_linear(2),
    mixed_linear(),
    mixed_linear(2),
    attention_linear,
    conv_head(),
    conv_head((1, 2, 2), width=1.5),
    residual_head(20),
]


@pytest.mark.parametrize("factory", IMAGE_HEADS)
def test_image_heads_return_logits(factory) -> None:
    assert factory((2, 6, 8, 8), 5)(torch.randn(4, 6, 8, 8)).shape == (4, 5)


def test_pooled_linear_is_the_mean_then_a_linear_layer() -> None:
    head = pooled_linear((1, 3, 4, 4), 2)
    features = torch.randn(5, 3, 4, 4)
    linear = head[-1]
    torch.testing.assert_close(head(features), features.mean(dim=(2, 3)) @ linear.weight.T + linear.bias)


def test_attention_begins_as_the_mean_and_looks_where_the_query_points() -> None:
    head, features = attention_linear((1, 3, 4, 4), 2), torch.randn(5, 3, 4, 4)
    query, linear = head[0].query.weight, head[1]
    torch.testing.assert_close(head[0](features), features.mean(dim=(2, 3)))
    features[:, 1, 2, 3] = 9.0
    query.data[0, 1] = 100.0
    torch.testing.assert_close(head(features), linear(features[:, :, 2, 3]))


def test_attention_reads_sequences_as_it_reads_images() -> None:
    image, text = attention_linear((1, 3, 2, 4), 2), attention_linear((1, 8, 3), 2)
    torch.nn.init.normal_(image[0].query.weight)
    text.load_state_dict(image.state_dict())
    features = torch.randn(5, 3, 2, 4)
    torch.testing.assert_close(image(features), text(features.flatten(2).transpose(1, 2)))


def test_mixed_pooling_is_a_learnt_mix_of_largest_and_mean() -> None:
    pool, features = mixed_linear()((1, 3, 4, 4), 2)[0], torch.randn(5, 3, 4, 4)
    largest, mean = features.amax(dim=(2, 3)), features.mean(dim=(2, 3))
    torch.testing.assert_close(pool(features).flatten(1), (largest + mean) / 2)
    pool.mix.data.fill_(1.0)
    share = 1 / (1 + torch.tensor(-1.0).exp())
    torch.testing.assert_close(pool(features).flatten(1), share * largest + (1 - share) * mean)


@pytest.mark.parametrize("factory", [attention_linear, mixed_linear()])
def test_cheap_heads_cost_little_beside_a_convolution(factory) -> None:
    stages = [torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)]
    model = MultiExitModel(stages, [factory((1, 16, 32, 32), 10), pooled_linear((1, 16, 32, 32), 10)])
    report = measure_flops(model, torch.randn(2, 16, 32, 32))
    assert report.heads[0] < 0.02 * report.stages[0]
    assert report.uncounted == ()


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


def test_residual_heads_halve_the_image_until_they_have_their_channels() -> None:
    head = residual_head(10)((1, 4, 16, 16), 3)
    assert [m.out_channels for m in head.modules() if isinstance(m, torch.nn.Conv2d)] == [8, 8, 8, 10, 10, 10]
    assert head[:-1](torch.randn(2, 4, 16, 16)).shape == (2, 10, 4, 4)
    plain = residual_head(4)((1, 4, 16, 16), 3)  # there already
    assert not any(isinstance(m, torch.nn.Conv2d) for m in plain.modules())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: pooled_linear((2, 3), 10), r"shape \(2, 3\) does not fit pooled_linear"),
        (lambda: conv_head()((2, 3, 4), 10), "does not fit conv_head"),
        (lambda: token_head((2, 3), 10), "does not fit token_head"),
        (lambda: residual_head(8)((2, 3, 4), 10), "does not fit residual_head"),
        (lambda: attention_linear((2, 3), 10), "does not fit attention_linear"),
        (lambda: mixed_linear()((2, 3, 4), 10), "does not fit mixed_linear"),
        (lambda: branch_head()([(2, 3)], 10), "do not fit branch_head"),
        (lambda: residual_head(0), "channels 0"),
        (lambda: conv_head(()), "strides"),
        (lambda: conv_head((2,), width=0), "width 0"),
        (lambda: branch_head(0), "width 0"),
        (lambda: mixed_linear(0), "size 0"),
        (lambda: grid_linear(0), "size 0"),
    ],
)
def test_refuses_other_shapes_and_settings(make, said) -> None:
    with pytest.raises(ShapeError, match=said):
        make()
