// The interface between the program (program.cpp) and the kernels: plain views of memory, and one table of functions per
// instruction set. A kernel allocates nothing. It runs one work item in one thread; the program partitions the work.
//
// Rows of activations: float data[token][stride], stride a multiple of 16. The writer of a row fills it with zeros from its width
// to the stride, so that readers load full vectors.
//
// Batch invariance: an output row depends bit by bit on its own inputs alone. Every sum has one fixed order, whatever the number of
// rows, the partition or the thread. The streaming form for few rows and the blocked form for many rows give the same bits.
#pragma once

#include <cstdint>

#include "limits.h"

namespace hasten {

constexpr int kLanes = 16;           // output features of a weight panel, slots of a key panel
constexpr int kInt8RowPadding = 64;  // rows of int8 activations are padded to a multiple of this many bytes

enum class Dtype : int32_t { f32 = 0, bf16 = 1, f16 = 2, int8 = 3, int4 = 4, bf16_compressed = 5, codes4 = 6, codes8 = 7, fp8 = 8 };

constexpr bool is_bf16(Dtype dtype) { return dtype == Dtype::bf16 || dtype == Dtype::bf16_compressed; }
constexpr bool is_coded(Dtype dtype) { return dtype == Dtype::codes4 || dtype == Dtype::codes8; }
constexpr bool is_grouped(Dtype dtype) { return is_coded(dtype) || dtype == Dtype::fp8; }
// Whether products may take int8 activations.
constexpr bool is_integer(Dtype dtype) { return dtype == Dtype::int8 || dtype == Dtype::int4 || is_coded(dtype); }

enum class Activation : int32_t { none = 0, silu = 1, gelu = 2, gelu_tanh = 3 };

struct Rows {
    float* data;
    int64_t stride;  // floats
    // A slice of wider rows: its padding belongs to other columns.
    bool is_slice = false;
};

// Rows of dynamically quantised activations: x ~ scales[t] * data[t][k], symmetric, |data| <= 127, scale = max|x| / 127.
struct QuantizedRows {
    int8_t* data;    // [t][stride], zeros from the width to the stride
    int64_t stride;  // bytes, a multiple of kInt8RowPadding
    float* scales;   // [t]
    int32_t* sums;   // [t]: of data, to subtract the zero point of the weights
};

// Rows of activations rounded to bf16, for AMX tiles. Products of at most kMaxVectorRows rows do not read them.
struct Bf16Rows {
    uint16_t* data;  // [t][stride], zeros from the width to a multiple of 32
    int64_t stride;  // elements
};
constexpr int32_t kMaxVectorRows = 8;

struct ConvertToBf16Task {
    Rows x;
    int32_t width;
    Bf16Rows out;
    int32_t begin, end;
};

// Rows of activations in 16 bits, for products with integer codes: x ~ scales[t][k / 128] * q[t][k], symmetric, |q| <= 32512,
// scale = max|x| of the block / 32512. So an input is rounded to a 65,024th of the range of its block.
constexpr int64_t kInt16BlockInputs = 128;
struct Int16Rows {
    uint8_t* data;   // [t][stride]: eight bytes for four inputs, in the order of the instruction set (simd/dot_*.h)
    int64_t stride;  // bytes
    float* scales;   // [t][blocks]
    int32_t* sums;   // [t][8 * blocks]: of q, for 16 inputs each
    int64_t blocks;  // of a row

    Int16Rows from(int64_t row) const {
        return {data + row * stride, stride, scales + row * blocks, sums + row * 8 * blocks, blocks};
    }
};

struct ConvertToInt16Task {
    Rows x;
    int32_t width;
    Int16Rows out;
    int32_t begin, end;
};

// A packed weight matrix [out, in]: panels of 16 output features. The inputs that one vector instruction multiplies at once lie
// side by side. I' is `in` padded to a multiple of 64 (int8, int4), of 32 (bf16), or `in` itself (f32, f16). Padding weights are
// zero, and outputs are padded to a multiple of 16:
//   f32   data[panel][I'][16]                 f16   the same, 2 bytes each
//   bf16  data[panel][I'/2][16][2]
//   int8  data[panel][I'/4][16][4]            unsigned, zero point 128: w ~ scales[panel][16] * (data - 128)
//   int4  data[panel][I'/64][576 bytes]       see kernels/int4_block.h: w ~ scales[panel][16] * s * (nibble - 8)
//   bf16_compressed  data[panel][I'/8][192 bytes]   see kernels/bf16_compressed.h: bf16 in 12 bits per weight, lossless
//   codes4, codes8, fp8  data[panel][ceil(I / G)][group]   see kernels/grouped_block.h: groups of G inputs with a float scale each
// The group scale s of int4 is an integer from -15 to 15 for each 16 inputs of an output. s * (nibble - 8) fits a byte, so products
// are those of an int8 matrix, as in Lin et al., "QServe", 2024.
//
// An outlier of bf16_compressed is a weight whose exponent has no code. It is 0 in the blocks and stands in the panel's list.
struct Outlier {
    int32_t input;
    uint16_t lane, bits;  // the output within its panel, the weight as bf16
};

// Inputs of an output that share a scale.
struct Groups {
    int32_t inputs = 0;        // 16, 32, 64 or 128
    bool has_offsets = false;  // codes4, codes8: w = scale * code + offset; else w = scale * (code - 8 or 128)
    bool is_nested = false;    // codes4, codes8: scales and offsets are bytes, with a scale for all those of 256 inputs

    int64_t block_inputs() const { return is_nested ? 256 : inputs; }
};

struct Matrix {
    Dtype dtype;
    int32_t out_features, in_features;
    int32_t padded_in;  // I'
    int32_t panels;     // ceil(out / 16)
    uint8_t* data;      // 64-byte aligned
    int64_t panel_bytes;
    float* scales;  // int8, int4: [panels * 16]
    // codes4, codes8, fp8.
    Groups groups;
    // bf16_compressed. Each row is packed once. A count above max_outliers means that the list overflowed and the matrix is
    // unusable. The outliers of one output ascend by input.
    // exponent_bases holds the base of each output at the bytes of its codes.
    uint8_t* exponent_bases = nullptr;  // [panels][64]
    Outlier* outliers = nullptr;        // [panels][max_outliers]
    int32_t* num_outliers = nullptr;    // [panels]
    int32_t max_outliers = 0;
};

// A block of a panel in groups is a group, or 256 inputs if its groups are nested (kernels/grouped_block.h).
inline int64_t block_codes_begin(const Groups& groups) {
    const int64_t values = groups.has_offsets ? 2 : 1;  // for each group and output
    if (!groups.is_nested) return 64 * values;
    return 64 + (groups.block_inputs() / groups.inputs * kLanes * values + 63) / 64 * 64;
}
inline int64_t block_bytes(Dtype dtype, const Groups& groups) {
    return block_codes_begin(groups) + groups.block_inputs() * (dtype == Dtype::codes4 ? 8 : 16);
}
inline int64_t num_groups(const Matrix& matrix) { return (matrix.in_features + matrix.groups.inputs - 1) / matrix.groups.inputs; }
inline int64_t num_blocks(const Matrix& matrix) {
    return (matrix.in_features + matrix.groups.block_inputs() - 1) / matrix.groups.block_inputs();
}

// Packs rows [row, row + rows) of a matrix from a checkpoint tensor. `source` points at the first of these rows.
struct PackTask {
    Matrix* matrix;
    const void* source;  // f32, bf16 or f16
    Dtype source_dtype;
    int64_t row_stride;     // elements between output features
    int64_t column_stride;  // elements between inputs (1, or the row length if the tensor is stored transposed)
    int32_t row, rows;
};

// Packs rows [row, row + rows) of a quantised matrix as they are stored.
struct PackCodesTask {
    Matrix* matrix;        // int8, codes4, codes8 or fp8, not nested
    const uint8_t* codes;  // [rows][row_stride]: codes, or FP8 numbers
    int64_t row_stride;
    const float* scales;   // [rows][groups]; int8: [rows]
    const float* offsets;  // the same, or null
    int32_t row, rows;
};

// The same for nested groups: scale = block_scales * scales, offset = block_offsets * offsets.
struct PackNestedTask {
    Matrix* matrix;
    const uint8_t* codes;
    int64_t row_stride;
    const int8_t *scales, *offsets;                // [rows][groups]; offsets: or null
    const uint16_t *block_scales, *block_offsets;  // [rows][blocks], float16
    int32_t row, rows;
};

// The product x W^T of panels [panel_begin, panel_end), with its epilogue, for all rows of the task:
//   out = activation(x W^T + bias)                            [add: out += ...]
//   gated: out[:, j] = activation((x W^T + b)[j]) * (x W^T + b)[j + out/2], for the panels of the first half (out/2 % 16 == 0)
struct LinearTask {
    const Matrix* matrix;
    int32_t rows;
    Rows x;                   // float activations, if quantized.data is null
    QuantizedRows quantized;  // int8 activations (weights of is_integer types only)
    Bf16Rows x_bf16;          // the same as x, for bf16 weights; null: these are multiplied in float
    Int16Rows x_int16;        // the same as x, for codes, which need it unless `quantized` is given
    const float* bias;        // [panels * 16], zero in the padding, or null
    Rows out;
    bool add;
    bool gated;
    Activation activation;
    int32_t panel_begin, panel_end;
    void* scratch;  // kLinearScratch bytes of this thread, 64-byte aligned, uninitialised
};
constexpr int64_t kLinearScratch = 4 << 20;

enum class NormKind : int32_t { none = 0, rms = 1, layer = 2 };

// y = norm(x) of rows [begin, end). kind none: y = x, to quantise or copy. Writes `out` and `quantized`, each if its data is set.
//   rms: x / sqrt(mean(x^2) + eps) * weight          layer: (x - mean) / sqrt(var + eps) * weight + bias
struct NormTask {
    NormKind kind;
    Rows x;
    int32_t width;
    const float* weight;  // [width rounded up to 16, zeros]
    const float* bias;    // or null
    float eps;
    Rows out;
    QuantizedRows quantized;
    int32_t begin, end;
};

// out = activation(x[:, :F]) * x[:, F:2F] (gated) or activation(x), for rows [begin, end) and F = width of out. Writes `out` and
// `quantized`, each if its data is set.
struct ActivateTask {
    Activation activation;
    bool gated;
    Rows x;
    int32_t width;
    Rows out;
    QuantizedRows quantized;
    float* scratch;  // one row of `out`
    int32_t begin, end;
};

// Embedding lookup: out[t] = (add ? out[t] : 0) + row ids[t] of a packed matrix, dequantised. An output feature is one row.
struct EmbedTask {
    const Matrix* matrix;
    const int32_t* ids;
    bool add;
    Rows out;
    int32_t begin, end;
};

// cos and sin [t][2][dim / 2] of position * inverse_frequency, times `factor`. Angles are rounded to float.
struct RotaryTableTask {
    const float* inverse_frequencies;  // [dim / 2]
    int32_t half;
    float factor;
    const int32_t* positions;
    float* cos_sin;  // [t][2 * half]: cos, then sin
    int32_t begin, end;
};

// Keys and values of one layer in the paged pool. A block has block_size token slots, in ceil(block_size / 16) panels of 16:
//   keys    [block][kv_head][panel][dim' / pack][16][pack]   pack: f32 1, bf16 2, f16 1, int8 4
//   values  [block][kv_head][panel * 16 slots][dim'']        dim'' = dim padded to 16
// dim' is dim padded to 4 (int8) or to 2, since the score kernels read two inputs at a time. Padding is zero.
//   int8 only: key_scales, value_scales [block][kv_head][panel * 16]; k ~ scale * k8, symmetric, |k8| <= 127
// int8 keys are stored as the unsigned bytes k8 + 128, values as signed bytes. With int8 keys, queries are quantised per head.
// Unwritten slots may hold any bits: kernels mask them or do not read them.
constexpr int64_t kv_key_pack(Dtype dtype) { return dtype == Dtype::int8 ? 4 : dtype == Dtype::bf16 ? 2 : 1; }
constexpr int64_t kv_key_dim(Dtype dtype, int64_t head_dim) {
    const int64_t unit = dtype == Dtype::int8 ? 4 : 2;
    return (head_dim + unit - 1) / unit * unit;
}
struct KvLayer {
    Dtype dtype;  // f32, bf16, f16 or int8
    int32_t kv_heads, head_dim, block_size;
    uint8_t* keys;
    uint8_t* values;
    float* key_scales;
    float* value_scales;
};

// One sequence of the step: tokens [begin, end), in the slots of positions [start, start + end - begin). The block of position p is
// block_table[p / block_size - first_block].
//
// tree_mask null: the tokens have these positions, with a causal mask. Else the sequence is a draft tree of at most 64 tokens. Bit
// j of tree_mask[i] is set if token i attends to token j, its ancestor or itself. The position of token i is then start + number of
// set bits - 1, for RoPE and for sliding windows.
struct SequenceSpan {
    int32_t begin, end, start, first_block;
    const int32_t* block_table;
    const uint64_t* tree_mask;  // [end - begin], or null
};

// QK norm, RoPE, and the write to the KV cache, for tokens [begin, end) of the step. qkv[t] = [q heads | k heads | v heads].
// Queries are rotated in place and not scaled.
struct RopeAndCacheTask {
    Rows qkv;
    int32_t heads, kv_heads, head_dim;
    NormKind norm;          // of single heads, before RoPE
    const float* q_weight;  // [head_dim]
    const float* q_bias;
    const float* k_weight;
    const float* k_bias;
    float eps;
    const float* cos_sin;  // [t][head_dim] of RotaryTableTask, or null. NeoX style: i is paired with i + head_dim / 2
    const KvLayer* kv;
    const int64_t* slot_mapping;  // [t]: block * block_size + slot
    int32_t begin, end;
};

// Work partition of the attention of one sequence (kernels/attention_plan.h).
struct SequencePartition {
    int64_t queries, tiles;  // of one KV head
    int64_t first_split, splits;
    int64_t chunks;                                  // runs of splits; an item is one chunk of one tile
    int32_t heads_per_item;                          // KV heads that one item processes in turn
    int64_t first_item, first_merge, first_partial;  // offsets: work items, merge items, floats of partial results
};

// The partition of all sequences, computed once per step for all layers of one shape.
struct AttentionPlan {
    SequencePartition* partitions;  // [num_sequences]
    int64_t splits_per_item;        // maximum splits of an item
    int64_t items;                  // phase one, in any order
    int64_t merges;                 // phase two, after all items of phase one
    int64_t partial_bytes;
};

// Paged attention. Heads lie side by side in `out` [t][heads * head_dim]. A work item is a tile of queries of one sequence and KV
// head. Long contexts are split at fixed positions (split-KV), and partial results are merged in ascending order. So the result
// does not depend on the partition.
struct AttentionTask {
    Rows q;  // the qkv rows, q heads first
    int32_t heads, kv_heads, head_dim;
    float scale, soft_cap;  // soft_cap 0: none; else s = cap * tanh(s / cap)
    int32_t window;         // 0: none; else keys in (p - window, p]
    const float* sinks;     // [heads]: attention sinks, logits of the softmax without a value; or null
    const KvLayer* kv;
    bool allow_bf16;  // queries and softmax weights may be rounded to bf16 if keys and values are bf16
    const SequenceSpan* sequences;
    int32_t num_sequences;
    Rows out;
    int32_t num_threads;
    const AttentionPlan* plan;
    void* partials;  // plan->partial_bytes, shared by all threads
};

// Samples the token of one row of logits, to which masks and penalties have been applied. As defined in hasten.sampling:
// temperature, top-k with ties, top-p, min-p, then Gumbel-max with the noise of (seed, sequence, position, token). A row is decided
// only if no rounding, in this kernel or in the reference, can change its token.
struct SampleTask {
    const float* logits;
    int64_t vocab_size;
    float temperature;  // 0: greedy, the lowest token of equal logits
    float tail_mass;    // 1 - top_p, or 0 for none
    float min_p;        // or 0 for none
    int32_t top_k;      // or 0 for none
    uint64_t seed, sequence, position;
};

struct Kernels {
    const char* name;
    // Maximum panels and rows of a work item of a product of many rows, so that both operands stay in the second-level cache.
    int32_t item_panels, item_rows;
    // Returns whether all weights, as stored, are finite. Quantised formats have no NaN, which would vanish.
    bool (*pack)(const PackTask&);
    bool (*pack_codes)(const PackCodesTask&);
    bool (*pack_nested)(const PackNestedTask&);
    void (*linear)(const LinearTask&);
    void (*convert_to_int16)(const ConvertToInt16Task&);
    void (*convert_to_bf16)(const ConvertToBf16Task&);  // null if no product of this instruction set reads bf16 rows
    void (*norm)(const NormTask&);
    void (*activate)(const ActivateTask&);
    void (*embed)(const EmbedTask&);
    void (*rotary_table)(const RotaryTableTask&);
    void (*rope_and_cache)(const RopeAndCacheTask&);
    // Writes the plan of the task's sequences. plan.partitions points to memory for num_sequences.
    void (*plan_attention)(const AttentionTask&, AttentionPlan&);
    void (*attend)(const AttentionTask&, int64_t item, void* scratch);
    void (*merge_splits)(const AttentionTask&, int64_t item);
    // Writes the token and returns true, or returns false if the row is undecided.
    bool (*sample)(const SampleTask&, int32_t* token);
};
constexpr int64_t kAttentionScratch = 1 << 20;

const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();

}  // namespace hasten
