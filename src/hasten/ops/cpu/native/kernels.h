// The contract between the program (program.cpp) and the kernels: plain views of memory, and one table of functions per
// instruction set. Nothing here allocates. A kernel runs in one thread on the items it is told to; the program splits the work.
//
// Rows of activations:   float data[token][stride], stride a multiple of 16. Whoever writes a row writes zeros from its width up
// to the stride, so that a reader may always take whole vectors.
//
// Batch invariance: the numbers of one output row depend on that row's inputs alone, bit by bit: every sum has one fixed order,
// whatever the number of rows, the items or the thread. A fast form for few rows and a form for many give the same bits.
#pragma once

#include <cstdint>

namespace hasten {

constexpr int kLanes = 16;     // output features of a panel, slots of a key panel
constexpr int kQuantPad = 64;  // rows of int8 activations are padded to this many bytes

enum class Dtype : int32_t { f32 = 0, bf16 = 1, f16 = 2, int8 = 3, int4 = 4, bf16_coded = 5 };

constexpr bool is_bf16(Dtype dtype) { return dtype == Dtype::bf16 || dtype == Dtype::bf16_coded; }

enum class Activation : int32_t { none = 0, silu = 1, gelu = 2, gelu_tanh = 3 };

struct Rows {
    float* data;
    int64_t stride;  // floats
    // Columns of wider rows: what follows them is not padding.
    bool part = false;
};

// Rows of dynamically quantised activations: x ~ scale[t] * data[t][k], symmetric, |data| <= 127, scale = max|x| / 127.
struct QuantizedRows {
    int8_t* data;    // [t][stride], zeros from the width up to the stride
    int64_t stride;  // bytes, a multiple of kQuantPad
    float* scales;   // [t]
    int32_t* sums;   // [t]: of data
};

// Rows of activations rounded to bf16, for the kernels that multiply such rows: more than kVectorRows of them.
struct NarrowRows {
    uint16_t* data;  // [t][stride], zeros from the width up to a multiple of 32
    int64_t stride;  // elements
};
constexpr int32_t kVectorRows = 8;

struct NarrowTask {
    Rows x;
    int32_t width;
    NarrowRows out;
    int32_t begin, end;
};

// A packed weight matrix [out, in]: panels of 16 output features, `pack` inputs of one output side by side (what one vector
// instruction multiplies at once). With I' = in padded to a multiple of 64 (int8, int4: weights of the padding are zero after
// the zero point is taken off), of 32 (bf16), or in itself (f32, f16); outputs are padded to 16 with zero rows:
//   f32   data[panel][I'][16]                 f16   the same, 2 bytes each
//   bf16  data[panel][I'/2][16][2]
//   int8  data[panel][I'/4][16][4]            unsigned, w ~ scales[panel][16] * (data - 128)
//   int4  data[panel][I'/64][576 bytes]       read in kernels/nibbles.h: w ~ scales[panel][16] * s * (nibble - 8), where s is a
//         whole number from -15 to 15 for each 16 inputs of an output. s * (nibble - 8) fits a byte, so that products are those
//         of an int8 matrix (as Lin et al., "QServe", 2024, have it).
//   bf16_coded  the same values as bf16 in 12 bits each: data[panel][I'/8][192 bytes], read in kernels/coded.h. The lower byte is
//         kept; of the upper one, the sign and the distance of its exponent from the base of its output, in four bits. The few
//         weights that are too small for it are zeros there, and stand in the panel's list of exceptions.
struct Exception {
    int32_t input;
    uint16_t lane, bits;  // the output in its panel, the weight as bf16
};

struct Matrix {
    Dtype dtype;
    int32_t out_features, in_features;
    int32_t padded_in;  // I'
    int32_t panels;     // ceil(out / 16)
    uint8_t* data;      // 64-byte aligned
    int64_t panel_bytes;
    float* scales;  // int8, int4: [panels * 16]
    // bf16_coded, whose rows are packed once each. Lists have room for max_exceptions; counts go on beyond, and then the matrix is
    // of no use. Those of one output ascend by input.
    uint8_t* bases = nullptr;  // [panels][64]: of each output four times, where its codes are; exponents 1 to 7 above have codes
    Exception* exceptions = nullptr;    // [panels][max_exceptions]
    int32_t* num_exceptions = nullptr;  // [panels]
    int32_t max_exceptions = 0;
};

// Rows [row, row + rows) of a matrix from a checkpoint tensor. `source` points at the first of these rows.
struct PackTask {
    Matrix* matrix;
    const void* source;  // f32, bf16 or f16
    Dtype source_dtype;
    int64_t row_stride;     // elements between output features
    int64_t column_stride;  // elements between inputs (1, or the row length when the tensor is stored transposed)
    int32_t row, rows;
};

// What becomes of the products x W^T of panels [panel_begin, panel_end), for all rows of the task.
//   out = activation(x W^T + bias)                            [add: out += ...]
//   gated: out[:, j] = activation((x W^T + b)[j]) * (x W^T + b)[j + out/2], for the panels of the first half (out/2 % 16 == 0)
struct LinearTask {
    const Matrix* matrix;
    int32_t rows;
    Rows x;                   // used when quantized.data is null: float activations
    QuantizedRows quantized;  // used otherwise (int8 and int4 weights only)
    NarrowRows narrow;        // the same as x, for bf16 weights; null: then these are multiplied in float
    const float* bias;        // [panels * 16], zero in the padding, or null
    Rows out;
    bool add;
    bool gated;
    Activation activation;
    int32_t panel_begin, panel_end;
    void* scratch;  // kLinearScratch bytes of this thread, 64-byte aligned, contents undefined
};
constexpr int64_t kLinearScratch = 4 << 20;

enum class NormKind : int32_t { none = 0, rms = 1, layer = 2 };

// y = norm(x) of rows [begin, end), width E. kind none: y = x (plain quantisation). Writes `out` if out.data is set and
// `quantized` if quantized.data is set. RMS: x / sqrt(mean(x^2) + eps) * weight; layer: (x - mean) / sqrt(var + eps) * w + b.
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

// out = activation(x[:, :F]) * x[:, F:2F] (gated) or activation(x), rows [begin, end), F = width of out; written to `out` if set
// and to `quantized` if set.
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

// out[t] = (add ? out[t] : 0) + row ids[t] of a packed matrix (one output feature is one embedding row) or of a plain table.
struct EmbedTask {
    const Matrix* matrix;
    const int32_t* ids;
    bool add;
    Rows out;
    int32_t begin, end;
};

// cos and sin [t][2][dim / 2] of position * inverse_frequency, times `factor`, angles in float.
struct RotaryTask {
    const float* inverse_frequencies;  // [dim / 2]
    int32_t half;
    float factor;
    const int32_t* positions;
    float* table;  // [t][2 * half]: cos, then sin
    int32_t begin, end;
};

// One layer's keys and values in the pool. A block has `slots` token slots, in ceil(slots / 16) panels of 16:
//   keys    [block][kv_head][panel][dim' / pack][16][pack]   pack: f32 1, bf16 2, f16 1, int8 4; dim' = dim padded to pack
//   values  [block][kv_head][panel * 16 slots][dim'' ]       dim'' = dim padded to 16
//   int8 only: key_scales, value_scales [block][kv_head][panel * 16]; k ~ scale * k8, symmetric, |k8| <= 127.
//   Keys are stored as the unsigned bytes k8 + 128, values as signed bytes. Queries are rounded to int8 by head where keys are.
// Unwritten slots may hold anything: they are not read, or masked before they count.
struct KvLayer {
    Dtype dtype;  // f32, bf16, f16 or int8
    int32_t kv_heads, head_dim, slots;
    uint8_t* keys;
    uint8_t* values;
    float* key_scales;
    float* value_scales;
};

// Row r of the step: tokens [begin, end) of the step lie in the slots of positions [start, start + end - begin) of its sequence.
// Its block table is blocks[0 .. ): the block of position p is blocks[p / slots - first_block].
//
// They also stand at these positions, each seeing all before it, where `tree` is null. Else, for at most 64 tokens, bit j of
// tree[i]: token i sees token j of the row, itself included. What it sees of the row is a path, so that it stands at position
// start + number of bits - 1: by this it is rotated, and windows are counted, inside the row too.
struct RowSpan {
    int32_t begin, end, start, first_block;
    const int32_t* blocks;
    const uint64_t* tree;  // [end - begin] or null
};

// Head norms, rotation and the write of keys and values into the pool for tokens [begin, end) of the step.
// qkv[t] = [q heads | k heads | v heads]; q is left rotated (not scaled) in place.
struct PrepareTask {
    Rows qkv;
    int32_t heads, kv_heads, head_dim;
    NormKind norm;          // of single heads, before the rotation
    const float* q_weight;  // [head_dim]
    const float* q_bias;
    const float* k_weight;
    const float* k_bias;
    float eps;
    const float* rotary;  // [t][head_dim] as RotaryTask writes it, or null. Halves: i is paired with i + head_dim / 2
    const KvLayer* kv;
    const int64_t* slots;  // [t]: block * kv->slots + slot
    int32_t begin, end;
};

// How the attention of one row of the step is cut (kernels/attention_plan.h).
struct RowCut {
    int64_t queries, tiles;  // of one kv head
    int64_t first_split, splits;
    int64_t chunks;                                  // runs of splits, each an item of every tile
    int32_t heads;                                   // kv heads that one item goes through, one after the other
    int64_t first_item, first_merge, first_partial;  // its first of all items, merges and floats of partial results
};

// The same of all rows. It is worked out once per step, for all layers of one shape.
struct AttentionPlan {
    RowCut* cuts;    // [num_rows]
    int64_t chunk;   // splits of an item, at most
    int64_t items;   // of phase one: any order, any thread
    int64_t merges;  // of phase two, after all of one
    int64_t partial_bytes;
};

// Attention over the pool, heads side by side in `out` [t][heads * head_dim]. One item is a few queries of one row and one
// kv head; a long context is split at fixed positions (kSplitPanels panels of 16 slots) into parts whose results are
// merged in ascending order, so that an item's numbers never depend on how the work was cut.
struct AttentionTask {
    Rows q;  // the qkv rows: q heads first
    int32_t heads, kv_heads, head_dim;
    float scale, soft_cap;  // soft_cap 0: none; else s = cap * tanh(s / cap)
    int32_t window;         // 0: none; else keys in (p - window, p]
    const float* sinks;     // [heads] logits that take part in the softmax and have no value, or null
    const KvLayer* kv;
    bool narrow;  // queries and weights of bf16 keys and values may be rounded to bf16 too
    const RowSpan* rows;
    int32_t num_rows;
    Rows out;
    int32_t num_threads;
    const AttentionPlan* plan;
    void* partials;  // plan->partial_bytes, shared by all threads
};

// The next token of one row of logits, to which masks and penalties have been applied. By the definition in hasten.sampling:
// temperature, top-k with its ties, top-p, min-p, then the largest sum of what is left and the noise of (seed, sequence, position,
// token). A row is decided only where no rounding, there or here, can make it another token.
struct DrawTask {
    const float* logits;
    int64_t count;
    float temperature;  // 0: the greatest logit, the lowest token of equals
    float tail;         // 1 - top_p, or 0 for none
    float min_p;        // or 0
    int32_t top_k;      // or 0
    uint64_t seed, sequence, position;
};

struct Kernels {
    const char* name;
    // An item of a product of many rows, at most: so much of both operands stays in the second-level cache.
    int32_t item_panels, item_rows;
    void (*pack)(const PackTask&);
    void (*linear)(const LinearTask&);
    void (*narrow)(const NarrowTask&);  // null where no product of this set reads such rows
    void (*norm)(const NormTask&);
    void (*activate)(const ActivateTask&);
    void (*embed)(const EmbedTask&);
    void (*rotary)(const RotaryTask&);
    void (*prepare)(const PrepareTask&);
    // Reads the task's rows and shape, writes the plan; plan.cuts points to room for num_rows.
    void (*plan_attention)(const AttentionTask&, AttentionPlan&);
    void (*attend)(const AttentionTask&, int64_t item, void* scratch);
    void (*merge)(const AttentionTask&, int64_t item);
    // Writes the token and returns true, or returns false where the row needs more than is tried here.
    bool (*draw)(const DrawTask&, int32_t* token);
};
constexpr int64_t kAttentionScratch = 1 << 20;

const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();

}  // namespace hasten
