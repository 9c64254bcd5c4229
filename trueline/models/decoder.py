"""The decoder: token ids in, hidden states out, over one flat stream of tokens without padding.

    ids_T -> embedding -> [RMSNorm -> attention -> + -> RMSNorm -> SwiGLU -> +] x layers -> RMSNorm -> hidden_TD

One forward computes Llama, Mistral, Yi, Qwen2, Qwen3 and SmolLM: biases and QK-norm are switched by the config. The
head is not applied: `token_logps` does it for the scored tokens only. Names are Hugging Face's less "model.".

Legend: T tokens, D width, F inner width, H query heads, G key-value heads, E width of a head, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, silu
from torch.utils.checkpoint import checkpoint

from trueline.models import fused as fused_blocks
from trueline.models.attention import Cache, Layout, attend
from trueline.models.config import DecoderConfig
from trueline.models.rope import rope


class Norm(nn.Module):
    """RMSNorm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rotate(x_TXE: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turns each pair (i, i + E/2) by its angle."""
    first, second = x_TXE.float().chunk(2, -1)
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_TXE.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; QK-norm and biases where the family has them."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        H, G = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.heads, self.kv_heads, self.width = layer, H, G, E
        self.q_proj = nn.Linear(D, H * E, bias=config.qkv_bias)
        self.k_proj = nn.Linear(D, G * E, bias=config.qkv_bias)
        self.v_proj = nn.Linear(D, G * E, bias=config.qkv_bias)
        self.o_proj = nn.Linear(H * E, D, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = Norm(E, config.rms_norm_eps), Norm(E, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def project(self, x_TD: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of the normalised stream, q and k rotated."""
        T = x_TD.shape[0]
        q_THE = self.q_proj(x_TD).view(T, self.heads, self.width)
        k_TGE = self.k_proj(x_TD).view(T, self.kv_heads, self.width)
        v_TGE = self.v_proj(x_TD).view(T, self.kv_heads, self.width)
        if self.qk_norm:
            q_THE, k_TGE = self.q_norm(q_THE), self.k_norm(k_TGE)
        return rotate(q_THE, *turn), rotate(k_TGE, *turn), v_TGE

    def project_fused(self, x_TD: Tensor, norm: Norm, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the stream before its norm."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        head_norms = (self.q_norm.weight, self.k_norm.weight) if self.qk_norm else (None, None)
        return fused_blocks.QKV.apply(
            x_TD,
            norm.weight,
            norm.eps,
            turn,
            self.width,
            *head_norms,
            *(p.weight for p in projections),
            *(p.bias for p in projections),
        )


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        D, F = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.down_proj = nn.Linear(F, D, bias=config.mlp_bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))


class Layer(nn.Module):
    """Attention, then MLP: each behind a norm, each added to the stream."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_TD: Tensor, turn: tuple[Tensor, Tensor], layout: Layout, cache: Cache | None, fused: bool
    ) -> Tensor:
        attention, mlp = self.self_attn, self.mlp
        if fused and all(type(m) is nn.Linear for m in (attention.q_proj, attention.k_proj, attention.v_proj)):
            q_THE, k_TGE, v_TGE = attention.project_fused(x_TD, self.input_layernorm, turn)
        else:
            q_THE, k_TGE, v_TGE = attention.project(self.input_layernorm(x_TD), turn)
        x_TD = x_TD + attention.o_proj(attend(q_THE, k_TGE, v_TGE, layout, cache, attention.layer).flatten(1))
        if fused and all(type(m) is nn.Linear and m.bias is None for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)):
            norm = self.post_attention_layernorm
            return fused_blocks.MLP.apply(
                x_TD, norm.weight, norm.eps, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
            )
        return x_TD + mlp(self.post_attention_layernorm(x_TD))


class Decoder(nn.Module):
    """A causal decoder. `source` is the directory it came from, or ""."""

    def __init__(self, config: DecoderConfig, source: str = "") -> None:
        super().__init__()
        self.config, self.source = config, source
        self.activation_checkpointing = False
        """Recompute each layer in the backward pass instead of keeping its activations."""
        self.neftune_alpha = 0.0
        """NEFTune (2310.05914): while training, uniform noise of at most alpha / sqrt(L D) on the embeddings.

        L is the sequence's own length (the first one's, for a prefix that several share).
        """
        self.fused = True
        """Use the hand-written blocks of fused.py. False calls every module, so that hooks on them fire."""
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the output head, which is the embedding when they are tied."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def forward(self, layout: Layout, cache: Cache | None = None, *, embedding_noise: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm [T, D]. `embedding_noise` [T, D] is added to the embeddings as it is."""
        window = self.config.sliding_window
        if window is not None and layout.max_length > window:
            raise ValueError(
                f"a sequence of {layout.max_length} tokens exceeds sliding_window = {window}; "
                f"only full attention is computed: cut sequences to {window} tokens."
            )
        x_TD = embedding(layout.ids_T, self.embed_tokens.weight)
        if embedding_noise is None and self.training and self.neftune_alpha:
            bound_T = self.neftune_alpha / (layout.lengths_T * x_TD.shape[1]).float().sqrt()
            embedding_noise = torch.empty_like(x_TD).uniform_(-1, 1) * bound_T[:, None]
        if embedding_noise is not None:
            x_TD = x_TD + embedding_noise
        turn = rope(self.config, layout.positions_T)
        for layer in self.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_TD = checkpoint(layer, x_TD, turn, layout, cache, self.fused, use_reentrant=False)
            else:
                x_TD = layer(x_TD, turn, layout, cache, self.fused)
        return self.norm(x_TD)

    def logits(self, ids: Tensor) -> Tensor:
        """Logits of every position, ids [L] -> [L, V] or [B, L] -> [B, L, V]; training uses token_logps."""
        rows = ids[None] if ids.dim() == 1 else ids
        layout = Layout.packed([row.numpy() for row in rows.cpu()]).to(self.device)
        return linear(self(layout), self.head_weight).view(*ids.shape, -1)

    def new_cache(self, num_slots: int, max_length: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty key-value cache that fits this model."""
        c = self.config
        return Cache.new(
            c.num_hidden_layers,
            num_slots,
            max_length,
            c.num_key_value_heads,
            c.head_dim,
            dtype or self.embed_tokens.weight.dtype,
            str(self.device),
        )


class ScalarModel(nn.Module):
    """A decoder with a linear score of each sequence's last token, saved as a one-label *ForSequenceClassification."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.score = nn.Linear(decoder.config.hidden_size, 1, bias=False)

    def forward(self, layout: Layout) -> Tensor:
        """Scores [S], float32."""
        hidden_SD = self.decoder(layout)[layout.last_S]
        with torch.autocast(hidden_SD.device.type, enabled=False):  # bfloat16 would round the differences that count
            return self.score(hidden_SD.to(self.score.weight.dtype)).squeeze(1).float()
