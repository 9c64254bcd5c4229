// One step of a decoder over a paged cache: new tokens of many sequences in, logits of the wanted ones out.
//
//     embedding -> [norm -> q k v -> rotate, store -> attention -> o -> + -> norm -> gate up -> act -> down -> +] x layers -> norm -> head
//
// The same function as models/decoder.py computes, for the families with RMSNorm, rotations and a gated MLP; everything else
// runs there. One parallel region for the whole step: threads take heads and blocks of outputs as they come, and meet behind
// each product. Activations are float32 whatever the weights are.
//
// Legend: T new tokens, N wanted ones, D width, F inner width, H query heads, G key-value heads, E width of a head, V vocabulary.
// Left out: several adapters at once, LayerNorm, parallel blocks, partial rotations, learned positions, devices other than the CPU.
#include <initializer_list>

#include "attention.hpp"

extern "C" {

struct Adapter {
    const float *a, *b;  // [rank, K] and [N, rank]
    float scale;
    int32_t rank;        // 0: none
};

struct Linear {  // W x + scale B A x
    Weight weight;
    Adapter adapter;
};

struct Layer {
    Linear q, k, v, o, gate, up, down;
    const float *before_attention, *behind_attention, *before_mlp, *behind_mlp, *q_norm, *k_norm;  // null: no such norm
    void *keys, *values;               // [blocks, G, E, S] and [blocks, G, S, E]
    float *key_scales, *value_scales;  // [blocks, G, S] or null
    const float *cos, *sin;            // [positions, E / 2]
    int64_t window;                    // 0: none
};

struct Model {
    int64_t layers, width, inner, heads, groups, head_width, vocabulary, block_size, rank;  // rank: the adapters' largest
    int32_t stored, activation, centred, norm_width;  // activation 0 SiLU, 1 GELU, 2 its tanh form; norm_width 1: q and k normed over all heads
    float eps, scale, cap, final_cap, embedding_multiplier, residual_multiplier, logits_divisor;
    Weight embedding, head;
    const float* norm;
    const Layer* layer;
};

struct Batch {
    int64_t tokens, sequences, wanted;
    const int32_t* ids;        // [T]
    const int32_t* positions;  // [T]
    const int32_t* firsts;     // [sequences + 1]: where a sequence's tokens begin
    const int32_t* tables;     // all tables, one after the other
    const int32_t* table_at;   // [sequences]: where a sequence's table begins
    const int32_t* last;       // [N]: the tokens whose logits are wanted
    float* logits;             // [N, V]
};

int64_t trueline_workspace(const Model* m, int64_t T) {
    const int64_t H = m->heads * m->head_width, G = m->groups * m->head_width;
    return T * (3 * m->width + 2 * H + 2 * G + 2 * m->inner + 3 * m->rank) + 64;
}

}  // extern "C"

namespace {

using attention::exponential;
using attention::store;
using products::fma;
using products::Lanes;
using products::LANES;

constexpr int64_t CHUNK = 32;       // outputs that a thread takes at a time
constexpr int64_t MANY = 128;      // from so many tokens on a thread takes more, for each time is another pass over x:
constexpr int64_t PANEL = 1 << 16;  // outputs of so many weights, which stay in the second cache

void norm_row(const Model& m, const float* x, const float* weight, int64_t size, float* out) {
    Lanes squares = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        const Lanes v = products::load(x + i);
        squares = fma(v, v, squares);
    }
    float total = products::sum(squares);
    for (; i < size; ++i) total += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(total / size + m.eps), more = m.centred ? 1.0f : 0.0f;
    for (i = 0; i < size; ++i) out[i] = x[i] * scale * (weight[i] + more);
}

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

Lanes activate(int32_t kind, Lanes x) {
    const Lanes zero = {}, one = zero + 1.0f;
    if (kind == 0) return x / (one + exponential(zero - x));
    const Lanes inner = (x + x * x * x * 0.044715f) * 0.7978845608028654f;
    return x / (one + exponential(inner * -2.0f));  // x (1 + tanh(inner)) / 2
}

// gate = act(gate) * up for the columns from..to of all rows
void gated(const Model& m, float* gate, const float* up, int64_t T, int64_t from, int64_t to) {
    for (int64_t t = 0; t < T; ++t) {
        float* g = gate + t * m.inner;
        const float* u = up + t * m.inner;
        if (m.activation == 1) {
            for (int64_t i = from; i < to; ++i) g[i] = g[i] * 0.5f * (1.0f + std::erf(g[i] * 0.70710678f)) * u[i];
            continue;
        }
        int64_t i = from;
        for (; i + LANES <= to; i += LANES) store(g + i, activate(m.activation, products::load(g + i)) * products::load(u + i));
        for (; i < to; ++i) g[i] = activate(m.activation, Lanes{} + g[i])[0] * u[i];
    }
}

void embed(const Model& m, int32_t id, float* out) {
    const int64_t D = m.width;
    switch (m.embedding.kind) {
        case F32: std::memcpy(out, static_cast<const float*>(m.embedding.data) + id * D, D * sizeof(float)); break;
        case BF16: products::unpack(static_cast<const products::bfloat16*>(m.embedding.data) + id * D, D, out); break;
        default: products::unpack(static_cast<const products::float16*>(m.embedding.data) + id * D, D, out);
    }
    if (m.embedding_multiplier != 1.0f)
        for (int64_t i = 0; i < D; ++i) out[i] *= m.embedding_multiplier;
}

struct Step {
    const Model& m;
    const Batch& b;
    int64_t T, D, H, G, E;
    float *x, *normed, *part, *q, *k, *v, *seen, *gate, *up, *low[3];
    std::vector<attention::Unit> units;
    std::vector<int64_t> places;  // of each new token in the cache

    Step(const Model& m, const Batch& b, float* memory)
        : m(m), b(b), T(b.tokens), D(m.width), H(m.heads), G(m.groups), E(m.head_width), places(b.tokens) {
        auto take = [&](int64_t size) { float* at = memory; memory += T * size; return at; };
        x = take(D), normed = take(D), part = take(D);
        q = take(H * E), seen = take(H * E), k = take(G * E), v = take(G * E);
        gate = take(m.inner), up = take(m.inner);
        for (float*& each : low) each = take(m.rank);
        for (int64_t s = 0; s < b.sequences; ++s) {
            const int32_t* table = b.tables + b.table_at[s];
            for (int64_t t = b.firsts[s]; t < b.firsts[s + 1]; ++t)
                places[t] = table[b.positions[t] / m.block_size] * m.block_size + b.positions[t] % m.block_size;
        }
    }

    // The queries of the last layer that matter are the wanted ones only.
    void make_units(bool wanted_only) {
        units.clear();
        auto add = [&](int64_t first, int64_t count, int64_t s) {
            for (int64_t t = first; t < first + count; t += attention::QUERIES)
                units.push_back({t, std::min<int64_t>(attention::QUERIES, first + count - t), b.tables + b.table_at[s]});
        };
        int64_t n = 0;
        for (int64_t s = 0; s < b.sequences; ++s) {
            if (!wanted_only) add(b.firsts[s], b.firsts[s + 1] - b.firsts[s], s);
            else
                for (; n < b.wanted && b.last[n] < b.firsts[s + 1]; ++n) add(b.last[n], 1, s);
        }
    }

    // Of N outputs with K inputs: a quarter at most, so that threads end together.
    int64_t chunk(int64_t N, int64_t K) const { return T < MANY ? CHUNK : std::max(CHUNK, std::min(PANEL / K, N / 4) / 16 * 16); }

    void norm_rows(const float* weight, const float* from, float* to) {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) norm_row(m, from + t * D, weight, D, to + t * D);
    }

    // scale A x of the adapters of layers that read one input, into low[0], low[1], ...
    void lower(std::initializer_list<const Linear*> linears, const float* input) {
        int i = 0;
        for (const Linear* linear : linears) {
            float* to = low[i++];
            const Adapter& adapter = linear->adapter;
            const int64_t rank = adapter.rank, K = linear->weight.K;
            if (!rank) continue;
#pragma omp for schedule(dynamic)
            for (int64_t r = 0; r < rank; r += 4) {
                const int64_t end = std::min(rank, r + 4);
                product({adapter.a, nullptr, nullptr, nullptr, rank, K, F32, 0}, input, K, T, to, rank, r, end, false);
                for (int64_t t = 0; t < T; ++t)
                    for (int64_t i = r; i < end; ++i) to[t * rank + i] *= adapter.scale;
            }
        }
    }

    // Outputs from..to of a layer, whose adapter was lowered into `low`.
    void apply(const Linear& linear, const float* low, const float* input, float* y, int64_t ldy, int64_t from, int64_t to, bool add) {
        const Weight& w = linear.weight;
        const int32_t rank = linear.adapter.rank;
        product(w, input, w.K, T, y, ldy, from, to, add);
        if (rank) product({linear.adapter.b, nullptr, nullptr, nullptr, w.N, rank, F32, 0}, low, rank, T, y, ldy, from, to, true);
    }

    // x += multiplier * norm(w input): what a half of a layer gives to the stream.
    void give(const Linear& linear, const float* input, const float* norm) {
        const bool plain = !norm && m.residual_multiplier == 1.0f;
        const int64_t size = chunk(D, linear.weight.K);
        lower({&linear}, input);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < D; n += size)
            apply(linear, low[0], input, plain ? x : part, D, n, std::min(D, n + size), plain);
        if (plain) return;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) {
            float* given = part + t * D;
            if (norm) norm_row(m, given, norm, D, given);
            for (int64_t i = 0; i < D; ++i) x[t * D + i] += m.residual_multiplier * given[i];
        }
    }

    void finish_head(const Layer& layer, const attention::Heads& heads, int64_t unit) {  // norm, rotate, store
        const bool query = unit < H, key = !query && unit < H + G;
        const int64_t h = query ? unit : key ? unit - H : unit - H - G, per_row = query ? H : G;
        float* x = query ? q : key ? k : v;
        const float* norm = query ? layer.q_norm : key ? layer.k_norm : nullptr;
        for (int64_t t = 0; t < T; ++t) {
            float* row = x + (t * per_row + h) * E;
            if (norm && !m.norm_width) norm_row(m, row, norm, E, row);
            if (query || key) rotate(row, layer.cos + b.positions[t] * (E / 2), layer.sin + b.positions[t] * (E / 2), E / 2);
            if (query) continue;
            const int64_t S = m.block_size, cell = places[t] / S * G + h, s = places[t] % S;
            float* scales = key ? layer.key_scales : layer.value_scales;
            attention::write(heads, key ? layer.keys : layer.values, scales ? scales + cell * S + s : nullptr,
                             cell * E * S + (key ? s : s * E), key ? S : 1, row);
        }
    }

    void project(const Layer& layer, const attention::Heads& heads, const float* input) {
        lower({&layer.q, &layer.k, &layer.v}, input);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < H + 2 * G; ++unit) {
            const int kind = unit < H ? 0 : unit < H + G ? 1 : 2;
            const int64_t h = kind == 0 ? unit : kind == 1 ? unit - H : unit - H - G, per_row = kind == 0 ? H : G;
            const Linear& linear = kind == 0 ? layer.q : kind == 1 ? layer.k : layer.v;
            apply(linear, low[kind], input, kind == 0 ? q : kind == 1 ? k : v, per_row * E, h * E, (h + 1) * E, false);
            if (!m.norm_width) finish_head(layer, heads, unit);
        }
        if (!m.norm_width) return;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) {
            norm_row(m, q + t * H * E, layer.q_norm, H * E, q + t * H * E);
            norm_row(m, k + t * G * E, layer.k_norm, G * E, k + t * G * E);
        }
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < H + 2 * G; ++unit) finish_head(layer, heads, unit);
    }

    // Only the wanted tokens go on: they move to the front of the stream.
    void keep_wanted() {
#pragma omp single
        {
            for (int64_t n = 0; n < b.wanted; ++n)  // wanted tokens ascend, so nothing is overwritten before it is read
                if (b.last[n] != n) {
                    std::memcpy(x + n * D, x + b.last[n] * D, D * sizeof(float));
                    std::memcpy(seen + n * H * E, seen + b.last[n] * H * E, H * E * sizeof(float));
                }
            T = b.wanted;
        }
    }

    void layer(const Layer& layer, bool final) {
        const attention::Heads heads{H, G, E, m.block_size, m.scale, m.cap, layer.window, m.stored,
                                     layer.keys, layer.values, layer.key_scales, layer.value_scales};
        if (layer.before_attention) norm_rows(layer.before_attention, x, normed);
        project(layer, heads, layer.before_attention ? normed : x);
        if (final) {
#pragma omp single
            make_units(true);
        }
        const int64_t count = (int64_t)units.size() * G;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; ++i) attention::attend(heads, units[i / G], i % G, q, seen, b.positions);
        if (final) keep_wanted();
        give(layer.o, seen, layer.behind_attention);
        const float* input = x;
        if (layer.before_mlp) norm_rows(layer.before_mlp, x, normed), input = normed;
        const int64_t size = chunk(m.inner, D);
        lower({&layer.gate, &layer.up}, input);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < m.inner; n += size) {
            const int64_t end = std::min(m.inner, n + size);
            apply(layer.gate, low[0], input, gate, m.inner, n, end, false);
            apply(layer.up, low[1], input, up, m.inner, n, end, false);
            gated(m, gate, up, T, n, end);
        }
        give(layer.down, gate, layer.behind_mlp);
    }

    void logits() {
        norm_rows(m.norm, x, normed);
        const int64_t V = m.vocabulary, wide = 4 * CHUNK;
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < V; n += wide) {
            const int64_t end = std::min(V, n + wide);
            product(m.head, normed, D, T, b.logits, V, n, end, false);
            if (m.logits_divisor != 1.0f || m.final_cap > 0)
                for (int64_t t = 0; t < T; ++t)
                    for (int64_t i = n; i < end; ++i) {
                        float value = b.logits[t * V + i] / m.logits_divisor;
                        b.logits[t * V + i] = m.final_cap > 0 ? m.final_cap * std::tanh(value / m.final_cap) : value;
                    }
        }
    }

    void run() {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) embed(m, b.ids[t], x + t * D);
        for (int64_t i = 0; i < m.layers; ++i) layer(m.layer[i], i == m.layers - 1);
        if (T > 0) logits();
    }
};

}  // namespace

// Writes the keys and values of all new tokens into the cache, and the logits of the wanted ones, which must ascend.
extern "C" void trueline_step(const Model* m, const Batch* b, float* workspace, int32_t threads) {
    Step step(*m, *b, workspace);
    step.make_units(false);
#pragma omp parallel num_threads(threads)
    step.run();
}
