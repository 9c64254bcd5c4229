"""The decoder: token ids in, hidden states out, over one flat stream of tokens without padding.

    ids_T -> embedding -> [norm -> attention -> norm -> + -> norm -> MLP -> norm -> +] x layers -> norm -> hidden_TD

One forward computes every family of families/: the config says which norms there are and of which kind, how heads are
normed and rotated, which layers have a window, and what is scaled or capped. The head is applied by `token_logps`, to
what predicts scored tokens only; behind its attention the last layer computes no other positions either. Names are those of
Llama's files less "model.".

Legend: T tokens, N positions whose outputs are wanted, D width, F inner width, H query heads, G key-value heads, E width
of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm, linear, relu, rms_norm, silu
from torch.utils.checkpoint import checkpoint

from trueline.models import fused as fused_blocks
from trueline.models.attention import Layout, Rule, attend
from trueline.models.cache import BLOCK_SIZE, Cache
from trueline.models.config import DecoderConfig
from trueline.models.head import TokenScores, token_logps
from trueline.models.rope import rope

Turn = tuple[Tensor, Tensor] | None
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "relu": relu,
    "gelu": gelu,
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), partial(gelu, approximate="tanh")),
}


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension, computed in float32."""

    def __init__(self, config: DecoderConfig, *shape: int, bias: bool = True) -> None:
        """A weight of `shape`, whose last entry is the normed width; a bias only where the kind has one."""
        super().__init__()
        self.eps, self.centred, self.layer_norm = (
            config.norm_eps,
            config.norm == "rmsnorm_zero_centred",
            config.norm == "layernorm",
        )
        self.weight = nn.Parameter(torch.zeros(shape) if self.centred else torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape)) if bias and self.layer_norm else None

    @property
    def scale(self) -> Tensor:
        """What the normed values are multiplied with."""
        return 1 + self.weight if self.centred else self.weight

    def forward(self, x: Tensor) -> Tensor:
        width, weight = (x.shape[-1],), self.weight.float()
        if self.layer_norm:
            y = layer_norm(x.float(), width, eps=self.eps) * weight
            return (y if self.bias is None else y + self.bias.float()).to(x.dtype)
        if self.centred:
            weight = 1 + weight
        return rms_norm(x.float(), width, weight, self.eps).to(x.dtype)


def rotate(x_TXE: Tensor, turn: Turn) -> Tensor:
    """Turns each pair (i, i + R) of the first 2 R numbers of a head by its angle; what follows them stays."""
    if turn is None:
        return x_TXE
    cos, sin = (table_TR[:, None] for table_TR in turn)
    R = cos.shape[-1]
    first, second, rest = x_TXE.float().split((R, R, x_TXE.shape[-1] - 2 * R), -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1).to(x_TXE.dtype)


class Attention(nn.Module):
    """Grouped-query attention: projections, their norms and rotations, and the rule of the layer."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        H, G = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.width = layer, E
        self.rule = Rule(config.attention_scale, config.attn_logit_softcapping, config.window(layer))
        self.q_proj = nn.Linear(D, H * E, bias=config.qkv_bias)
        self.k_proj = nn.Linear(D, G * E, bias=config.qkv_bias)
        self.v_proj = nn.Linear(D, G * E, bias=config.qkv_bias)
        self.o_proj = nn.Linear(H * E, D, bias=config.output_bias)
        self.qk_norm = config.qk_norm_over if config.qk_norm else ""
        if config.qk_norm:
            shapes = {"head": ((E,), (E,)), "width": ((H * E,), (G * E,)), "each": ((H, E), (G, E))}[self.qk_norm]
            self.q_norm, self.k_norm = (Norm(config, *shape, bias=False) for shape in shapes)
        self.fusible = config.norm != "layernorm" and config.rotary_dim == E and self.qk_norm in ("", "head")
        """fused.QKV computes it, behind a norm."""

    def project(self, x_TD: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of the normalised stream, q and k normed and rotated."""
        q, k, v = self.q_proj(x_TD), self.k_proj(x_TD), self.v_proj(x_TD)
        if self.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q_THE, k_TGE, v_TGE = (x.view(len(x_TD), -1, self.width) for x in (q, k, v))
        if self.qk_norm in ("head", "each"):
            q_THE, k_TGE = self.q_norm(q_THE), self.k_norm(k_TGE)
        return rotate(q_THE, turn), rotate(k_TGE, turn), v_TGE

    def project_fused(self, x_TD: Tensor, norm: Norm, turn: fused_blocks.Turn) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the stream before its norm."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        head_norms = (self.q_norm.scale, self.k_norm.scale) if self.qk_norm else (None, None)
        return fused_blocks.qkv(
            x_TD,
            norm.scale,
            norm.eps,
            turn,
            self.width,
            *head_norms,
            *(p.weight for p in projections),
            *(p.bias for p in projections),
        )


class MLP(nn.Module):
    """down(act(gate(x)) up(x)), or without a gate down(act(up(x)))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        D, F = config.hidden_size, config.intermediate_size
        if config.gated_mlp:
            self.gate_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.down_proj = nn.Linear(F, D, bias=config.mlp_bias)
        self.gated, self.act = config.gated_mlp, ACTIVATIONS[config.hidden_act]

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(self.act(self.gate_proj(x_TD)) * self.up_proj(x_TD))
        return self.down_proj(self.act(self.up_proj(x_TD)))


class Layer(nn.Module):
    """Attention, then MLP: each behind a norm, before a norm, or both; each added to the stream."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        before = partial(Norm, config, config.hidden_size) if config.pre_norms else nn.Identity
        behind = partial(Norm, config, config.hidden_size) if config.post_norms else nn.Identity
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = before()
        self.attention_output_norm = behind()
        self.parallel, self.multiplier = config.parallel_block, config.residual_multiplier
        self.one_norm = config.parallel_block and config.shared_norm
        self.post_attention_layernorm = nn.Identity() if self.one_norm else before()
        self.mlp_output_norm = behind()
        self.fusible = (  # what fused.MLP computes
            config.norm != "layernorm"
            and config.pre_norms
            and not config.post_norms
            and not config.parallel_block
            and (config.hidden_act, config.gated_mlp, config.residual_multiplier) == ("silu", True, 1.0)
        )

    def forward(
        self, x_TD: Tensor, turn: Turn, layout: Layout, cache: Cache | None, fused: bool, wanted_N: Tensor | None = None
    ) -> Tensor:
        """The stream behind this layer; with `wanted_N` at these positions only: nobody attends to the last layer's output."""
        attention, mlp, norm = self.self_attn, self.mlp, self.input_layernorm
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        if fused and turn is not None and attention.fusible and isinstance(norm, Norm) and _plain(*projections):
            q_THE, k_TGE, v_TGE = attention.project_fused(x_TD, norm, turn)
        else:
            q_THE, k_TGE, v_TGE = attention.project(norm(x_TD), turn)
        seen_THE = attend(q_THE, k_TGE, v_TGE, layout, cache, attention.layer, attention.rule)
        if wanted_N is not None:
            x_TD, seen_THE = x_TD.index_select(0, wanted_N), seen_THE.index_select(0, wanted_N)
        out_TD = self.attention_output_norm(attention.o_proj(seen_THE.flatten(1)))
        before_TD, x_TD = x_TD, torch.add(x_TD, out_TD, alpha=self.multiplier)

        norm = norm if self.one_norm else self.post_attention_layernorm
        if fused and self.fusible and isinstance(norm, Norm) and _plain(mlp.gate_proj, mlp.up_proj, mlp.down_proj, bias=False):
            weights = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
            return fused_blocks.mlp(x_TD, norm.scale, norm.eps, *weights)
        out_TD = self.mlp_output_norm(mlp(norm(before_TD if self.parallel else x_TD)))
        return torch.add(x_TD, out_TD, alpha=self.multiplier)


def _plain(*layers: nn.Module, bias: bool = True) -> bool:
    """Whether these are linear layers and nothing else; adapters and low-bit layers go through their modules."""
    return all(type(m) is nn.Linear and (bias or m.bias is None) for m in layers)


def _embedding(rows: int, width: int) -> nn.Embedding:
    """new_model and load_model fill it; torch would draw it, and for a drawn one without memory import its compiler."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)


class Decoder(nn.Module):
    """A causal decoder. `source` is the directory it came from, or ""."""

    def __init__(self, config: DecoderConfig, source: str = "") -> None:
        super().__init__()
        self.config, self.source = config, source
        self.activation_checkpointing = False
        """Recompute each layer in the backward pass instead of keeping its activations."""
        self.neftune_alpha = 0.0
        """NEFTune (2310.05914): while training, uniform noise of at most alpha / sqrt(L D) on the embeddings.

        L is the sequence's own length (the first one's, for a prefix that several share). As in transformers, the noise is
        added to what the family's embedding gives: Gemma's multiplies by sqrt(D), Granite's is multiplied afterwards.
        """
        self.fused = True
        """Use the hand-written blocks of fused.py. False calls every module, so that hooks on them fire."""
        self.embed_tokens = _embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.embed_positions = _embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Norm(config, config.hidden_size)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the output head, which is the embedding when they are tied."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def forward(self, layout: Layout, cache: Cache | None = None, wanted_N: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm [T, D], or [N, D] of the positions `wanted_N`, indices into the flat stream that
        may repeat; times the head's weight, and capped, they are the logits."""
        config = self.config
        self._refuse_longer(layout.max_length)
        x_TD = embedding(layout.ids_T, self.embed_tokens.weight)
        if config.embedding_multiplier != 1.0:  # rounded to the weights' type, as the released models do
            x_TD = x_TD * torch.tensor(config.embedding_multiplier, dtype=x_TD.dtype, device=x_TD.device)
        if config.learned_positions:
            x_TD = x_TD + embedding(layout.positions_T, self.embed_positions.weight)
        if self.training and self.neftune_alpha:
            bound_T = self.neftune_alpha / (layout.lengths_T * x_TD.shape[1]).float().sqrt()
            if not config.embedding_is_scaled:
                bound_T = bound_T * config.embedding_multiplier
            x_TD = x_TD + torch.empty_like(x_TD).uniform_(-1, 1) * bound_T[:, None]

        turn = sliding_turn = None if config.learned_positions else rope(config, layout.positions_T)
        if config.sliding_rope_theta is not None:
            sliding_turn = rope(config, layout.positions_T, sliding=True)
        for number, layer in enumerate(self.layers):
            angles = turn if config.window(number) is None else sliding_turn
            wanted = wanted_N if number == len(self.layers) - 1 else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_TD = checkpoint(layer, x_TD, angles, layout, cache, self.fused, wanted, use_reentrant=False)
            else:
                x_TD = layer(x_TD, angles, layout, cache, self.fused, wanted)
        hidden_TD = self.norm(x_TD)
        return hidden_TD if config.logits_scaling == 1.0 else hidden_TD / config.logits_scaling

    def _refuse_longer(self, length: int) -> None:
        """Rotations go on for ever; learned positions end, and LongRoPE has other factors further on."""
        config = self.config
        if length > config.max_length and (
            config.learned_positions or config.rope_scaling.get("rope_type") == "longrope"
        ):
            raise ValueError(
                f"a sequence of {length} tokens exceeds the {config.max_length} positions that the model has: "
                f"cut sequences to {config.max_length} tokens."
            )

    def head(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, V] of hidden states; training uses token_logps, which never holds them all."""
        tied, cap = self.config.tie_word_embeddings, self.config.final_logit_softcapping
        logits_TV = linear(hidden_TD, self.embed_tokens.weight) if tied else self.lm_head(hidden_TD)
        return logits_TV if cap is None else (logits_TV / cap).tanh() * cap

    def token_logps(self, layout: Layout, *, temperature: float = 1.0, equal_weights: bool = False) -> TokenScores:
        """Log-probabilities of the layout's scored tokens, in its order; options as of head.token_logps."""
        return token_logps(
            self(layout, wanted_N=layout.predicted_by_N), self.head_weight, layout.targets_N, temperature=temperature,
            cap=self.config.final_logit_softcapping, equal_weights=equal_weights,
        )  # fmt: skip

    def logits(self, ids: Tensor) -> Tensor:
        """Logits of every position, ids [L] -> [L, V] or [B, L] -> [B, L, V]."""
        rows = ids[None] if ids.dim() == 1 else ids
        layout = Layout.packed([row.numpy() for row in rows.cpu()]).to(self.device)
        return self.head(self(layout)).view(*ids.shape, -1)

    def new_cache(self, num_blocks: int, block_size: int = BLOCK_SIZE, dtype: torch.dtype | None = None) -> Cache:
        """An empty key-value cache that fits this model."""
        c = self.config
        return Cache.new(
            c.num_hidden_layers, num_blocks, c.num_key_value_heads, c.head_dim,
            block_size=block_size, dtype=dtype or self.embed_tokens.weight.dtype, device=str(self.device),
        )  # fmt: skip


def labels_of(head: str) -> int:
    """How many numbers an objective's head gives a sequence: 0 of "tokens", 1 of "scalar", 6 of "6 categories"."""
    return ("tokens", "scalar").index(head) if head in ("tokens", "scalar") else int(head.split()[0])


class ScalarModel(nn.Module):
    """A decoder with a linear head on each sequence's last token, saved as a *ForSequenceClassification.

    One label is the score itself. C labels are the logits of C ordered categories, worst first, and the score is what they are
    worth in expectation: sum_i softmax(logits)_i utilities_i (DPRM, 2402.09764).
    """

    def __init__(self, decoder: Decoder, labels: int = 1) -> None:
        super().__init__()
        self.decoder, self.labels = decoder, labels
        self.score = nn.Linear(decoder.config.hidden_size, labels, bias=False)
        self.utilities: tuple[float, ...] = tuple(map(float, range(labels))) if labels > 1 else ()
        """What each category is worth; stored in config.json."""
        self.reward_shift = 0.0
        """Subtracted from every score: the mean over demonstrations (InstructGPT, 2203.02155). Stored in config.json."""

    def forward(self, layout: Layout) -> Tensor:
        """Scores [S], float32."""
        logits_SC = self.logits(layout)
        if self.labels == 1:
            return logits_SC.squeeze(1) - self.reward_shift
        return logits_SC.softmax(1) @ logits_SC.new_tensor(self.utilities) - self.reward_shift

    def logits(self, layout: Layout) -> Tensor:
        """What the head gives [S, labels], float32."""
        hidden_SD = self.decoder(layout, wanted_N=layout.last_S)
        hidden_SD = hidden_SD * self.decoder.config.logits_scaling  # which is for logits only
        with torch.autocast(hidden_SD.device.type, enabled=False):  # bfloat16 would round the differences that count
            return self.score(hidden_SD.to(self.score.weight.dtype)).float()
