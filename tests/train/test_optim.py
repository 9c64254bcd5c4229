"""AdamW: the bits of torch's own, and what building it does not import."""

from __future__ import annotations

import subprocess
import sys

import torch

from trueline.train.config import OptimConfig
from trueline.train.optim import adamw


def test_adamw_ends_where_torchs_does():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 1)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(learning_rate=0.01, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    optimizer = adamw(ours, config)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    other = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6, fused=True)
    for step in range(4):
        x = torch.randn(3, 5)
        for model, one in ((ours, optimizer), (theirs, other)):
            one.param_groups[0]["lr"] = 0.01 / (step + 1)
            one.zero_grad()
            model[0 if step < 2 else 2].requires_grad_(step != 2)  # a parameter without a gradient is left alone
            model(x).square().sum().backward()
            one.step()
    for mine, other_p in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other_p)


def test_a_training_step_does_not_import_torchs_compiler():
    code = """
import sys, numpy as np, torch
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.models.layout import Layout
from trueline.train.config import OptimConfig
from trueline.train.optim import adamw
with torch.device("meta"):
    Decoder(config := DecoderConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        learned_positions=True))
model = new_model(config)
optimizer = adamw(model, OptimConfig())
model(Layout.packed([np.array([1, 2, 3])])).sum().backward()
optimizer.step()
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
