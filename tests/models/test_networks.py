"""Networks: layers against their definitions."""

from __future__ import annotations

import torch

from pvae.models.networks import mlp


def test_a_gated_layer_is_one_linear_layer_times_the_sigmoid_of_another():
    network = mlp(5, 4, 3, activation="gated")
    x = torch.randn(7, 5)
    first, last = network[0], network[-1]
    h, g = first.weight[:4] @ x.T + first.bias[:4, None], first.weight[4:] @ x.T + first.bias[4:, None]
    assert torch.allclose(network(x), last((h * g.sigmoid()).T), atol=1e-6)
