/* The C interface of the native CPU backend: plain pointers and integers, no exceptions, nothing printed.

   A cpu (kernels and threads) computes; weights hold packed matrices; a kv holds the pool of keys and values; a program is the
   recorded step of one model over them. Functions that return a pointer or an index give null or -1 when memory is refused.
   Buffers of a program are named by small integers; kNone means "not this one". */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HASTEN_API __attribute__((visibility("default")))
#define HASTEN_ABI 5

enum { HASTEN_NONE = -1, HASTEN_LOGITS = -2 };

typedef struct hasten_cpu hasten_cpu;
typedef struct hasten_weights hasten_weights;
typedef struct hasten_matrix hasten_matrix;
typedef struct hasten_kv hasten_kv;
typedef struct hasten_program hasten_program;

HASTEN_API int32_t hasten_abi(void);

/* isa: "avx2", "avxvnni", "avx512", "amx", or null for the fastest. Null if it cannot run here. */
HASTEN_API hasten_cpu* hasten_cpu_new(const char* isa, int32_t threads);
HASTEN_API void hasten_cpu_free(hasten_cpu*);
HASTEN_API const char* hasten_cpu_isa(const hasten_cpu*);

HASTEN_API hasten_weights* hasten_weights_new(void);
HASTEN_API void hasten_weights_free(hasten_weights*);
HASTEN_API int64_t hasten_weights_bytes(const hasten_weights*);

/* dtype: 0 float32, 1 bfloat16 (kept in 12 bits, without loss), 2 float16, 3 int8, 4 int4. Freed with its weights. */
HASTEN_API hasten_matrix* hasten_matrix_new(hasten_weights*, int32_t dtype, int32_t out_features, int32_t in_features);
/* Output features [row, row + rows) from a tensor of dtype 0, 1 or 2; strides in elements. Each once. 1 when memory is refused. */
HASTEN_API int32_t hasten_matrix_pack(hasten_cpu*, hasten_matrix*, const void* source, int32_t source_dtype, int64_t row_stride,
                                      int64_t column_stride, int32_t row, int32_t rows);
/* out [rows, out_features] = x W^T + bias, contiguous float32 in and out; int8_activations: x is quantised first. */
HASTEN_API int32_t hasten_matrix_multiply(hasten_cpu*, const hasten_matrix*, const float* x, int32_t rows, const float* bias,
                                          int32_t int8_activations, float* out);
/* out [count, in_features]: rows ids of the matrix, as float32. */
HASTEN_API void hasten_matrix_lookup(hasten_cpu*, const hasten_matrix*, const int32_t* ids, int32_t count, float* out);

/* A pool of num_blocks blocks of `slots` tokens for every layer that is added. Layers of a group share block tables. */
HASTEN_API hasten_kv* hasten_kv_new(int32_t num_blocks, int32_t slots);
HASTEN_API void hasten_kv_free(hasten_kv*);
HASTEN_API int32_t hasten_kv_add_layer(hasten_kv*, int32_t group, int32_t dtype, int32_t kv_heads, int32_t head_dim);
HASTEN_API void hasten_kv_copy(hasten_kv*, int32_t group, int32_t source, int32_t target);
/* One token from slot to slot, in every layer of the group. */
HASTEN_API void hasten_kv_move(hasten_kv*, int32_t group, int32_t source_block, int32_t source_slot, int32_t target_block,
                               int32_t target_slot);
/* Bytes of one block of one layer, scales included. */
HASTEN_API int64_t hasten_kv_block_bytes(int32_t dtype, int32_t kv_heads, int32_t head_dim, int32_t slots);

HASTEN_API hasten_program* hasten_program_new(hasten_cpu*, hasten_kv*, int32_t max_tokens);
HASTEN_API void hasten_program_free(hasten_program*);

/* Buffers of max_tokens rows. */
HASTEN_API int32_t hasten_program_rows(hasten_program*, int32_t width);
HASTEN_API int32_t hasten_program_quantized_rows(hasten_program*, int32_t width);
/* The columns of a buffer from `column` on, a multiple of 16, under a name of their own. */
HASTEN_API int32_t hasten_program_part(hasten_program*, int32_t buffer, int32_t column);
HASTEN_API float* hasten_program_data(hasten_program*, int32_t buffer, int64_t* stride);

/* Recording. What comes before the first layer is the prologue; after begin_head, instructions run on the logits rows. */
HASTEN_API void hasten_program_begin_layer(hasten_program*);
HASTEN_API void hasten_program_begin_head(hasten_program*);
HASTEN_API void hasten_program_embed(hasten_program*, const hasten_matrix*, int32_t by_position, int32_t out);
HASTEN_API int32_t hasten_program_rotary(hasten_program*, const float* inverse_frequencies, int32_t half, float factor);
HASTEN_API void hasten_program_norm(hasten_program*, int32_t kind, int32_t x, int32_t width, const float* weight, const float* bias,
                                    float eps, int32_t out, int32_t quantized);
HASTEN_API void hasten_program_linear(hasten_program*, const hasten_matrix*, int32_t x, int32_t quantized, const float* bias,
                                      int32_t out, int32_t add, int32_t gated, int32_t activation);
HASTEN_API void hasten_program_activate(hasten_program*, int32_t activation, int32_t gated, int32_t x, int32_t width, int32_t out,
                                        int32_t quantized);
HASTEN_API void hasten_program_prepare(hasten_program*, int32_t layer, int32_t qkv, int32_t heads, int32_t norm,
                                       const float* q_weight, const float* q_bias, const float* k_weight, const float* k_bias,
                                       float eps, int32_t rotary);
HASTEN_API void hasten_program_attend(hasten_program*, int32_t layer, int32_t qkv, int32_t heads, float scale, float soft_cap,
                                      int32_t window, const float* sinks, int32_t out);
/* Copies the rows of the tokens whose logits are wanted. */
HASTEN_API void hasten_program_gather(hasten_program*, int32_t x, int32_t width, int32_t out);

/* One step. Tokens of all rows lie end to end. For group g and row r, blocks[tables[2 * (g * num_rows + r)] ...] is the block
   table, whose first entry is block number tables[2 * (g * num_rows + r) + 1] of the sequence.

   A row of at most 64 tokens may branch. Then bit j of tree[t] says that token t sees token j of its row, itself included. What
   it sees is a path, and it stands at position start + number of bits - 1; it is written to the slot of position start + its place
   in the row all the same. 0 in rows that do not branch. */
typedef struct hasten_step {
    int32_t num_tokens, num_rows, num_logits, num_groups;
    int32_t first_layer, last_layer; /* layers [first, last) run; embedding only from layer 0 */
    const int32_t* token_ids;        /* [num_tokens] */
    const int32_t* rows;             /* [num_rows][3]: begin, end, start */
    const int32_t* tables;           /* [num_groups][num_rows][2] */
    const int32_t* blocks;
    const int32_t* logits_tokens; /* [num_logits] */
    const uint64_t* tree;         /* [num_tokens], or null where no row branches */
    float* logits;                /* [num_logits][logits_stride] */
    int64_t logits_stride;        /* at least the outputs of the last matrix, rounded up to 16 */
} hasten_step;

/* 0, or 1 when memory for the step is refused. Blocks until done; callers of one cpu take turns. */
HASTEN_API int32_t hasten_program_run(hasten_program*, const hasten_step*);

/* How one row is sampled. 0 of temperature: the greatest logit; of the others: not used. */
typedef struct hasten_draw_settings {
    uint64_t seed;
    float temperature, tail, min_p; /* tail: 1 - top_p */
    int32_t top_k;
} hasten_draw_settings;

/* With the seed: the key of the row's noise. */
typedef struct hasten_draw_key {
    int64_t sequence, position;
} hasten_draw_key;

/* The token of each of `rows` rows of `count` logits, `stride` apart. Returns how many rows are left undecided: decided[row] is 0
   and tokens[row] means nothing where the row holds a NaN or an infinity, or where rounding or the length of its list of likely
   tokens leaves a doubt. */
HASTEN_API int32_t hasten_draw(hasten_cpu*, const float* logits, int32_t rows, int64_t count, int64_t stride,
                               const hasten_draw_settings* settings, const hasten_draw_key* keys, int32_t* tokens,
                               uint8_t* decided);

#ifdef __cplusplus
}
#endif
