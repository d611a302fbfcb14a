"""A module that calls a function, of which a VAE is made."""

from __future__ import annotations

from torch import nn


class Fixed(nn.Module):
    def __init__(self, function, takes_labels=False):
        super().__init__()
        self.forward = function
        self.takes_labels = takes_labels
