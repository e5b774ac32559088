/* The C interface of the native CPU backend: plain pointers and integers, no C++ exceptions, no output.

   A cpu owns kernels and threads. Weights own packed matrices. A kv owns the paged pool of keys and values. A program is the
   recorded step of one model. Functions that return a pointer or an index return null or -1 when out of memory.
   Integers name the buffers of a program; HASTEN_NONE means no buffer, HASTEN_LOGITS the logits of the step. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HASTEN_API __attribute__((visibility("default")))
#define HASTEN_ABI 6

enum { HASTEN_NONE = -1, HASTEN_LOGITS = -2 };

typedef struct hasten_cpu hasten_cpu;
typedef struct hasten_weights hasten_weights;
typedef struct hasten_matrix hasten_matrix;
typedef struct hasten_kv hasten_kv;
typedef struct hasten_program hasten_program;

HASTEN_API int32_t hasten_abi(void);

/* isa: "avx2", "avxvnni", "avx512", "amx", or null for the fastest. Returns null if it does not run on this machine. */
HASTEN_API hasten_cpu* hasten_cpu_new(const char* isa, int32_t threads);
HASTEN_API void hasten_cpu_free(hasten_cpu*);
HASTEN_API const char* hasten_cpu_isa(const hasten_cpu*);

HASTEN_API hasten_weights* hasten_weights_new(void);
HASTEN_API void hasten_weights_free(hasten_weights*);
HASTEN_API int64_t hasten_weights_bytes(const hasten_weights*);

/* dtype: 0 float32, 1 bfloat16 (losslessly compressed to 12 bits), 2 float16, 3 int8, 4 int4. Freed with its weights. */
HASTEN_API hasten_matrix* hasten_matrix_new(hasten_weights*, int32_t dtype, int32_t out_features, int32_t in_features);
/* Packs output features [row, row + rows), each once, from a tensor of dtype 0, 1 or 2. Strides are in elements. Returns 1 when out
   of memory, else 0. */
HASTEN_API int32_t hasten_matrix_pack(hasten_cpu*, hasten_matrix*, const void* source, int32_t source_dtype, int64_t row_stride,
                                      int64_t column_stride, int32_t row, int32_t rows);
/* out [rows, out_features] = x W^T + bias in contiguous float32. int8_activations: x is quantised first. Returns 1 when out of
   memory, else 0. */
HASTEN_API int32_t hasten_matrix_multiply(hasten_cpu*, const hasten_matrix*, const float* x, int32_t rows, const float* bias,
                                          int32_t int8_activations, float* out);
/* Embedding lookup: out [count, in_features] = rows `ids` of the matrix, dequantised to float32. */
HASTEN_API void hasten_matrix_lookup(hasten_cpu*, const hasten_matrix*, const int32_t* ids, int32_t count, float* out);

/* A pool of num_blocks blocks of block_size tokens for each layer that is added. Layers of a group share block tables. */
HASTEN_API hasten_kv* hasten_kv_new(int32_t num_blocks, int32_t block_size);
HASTEN_API void hasten_kv_free(hasten_kv*);
HASTEN_API int32_t hasten_kv_add_layer(hasten_kv*, int32_t group, int32_t dtype, int32_t kv_heads, int32_t head_dim);
HASTEN_API void hasten_kv_copy_block(hasten_kv*, int32_t group, int32_t source, int32_t target);
/* Moves one token to another slot, in every layer of the group. */
HASTEN_API void hasten_kv_move_token(hasten_kv*, int32_t group, int32_t source_block, int32_t source_slot, int32_t target_block,
                                     int32_t target_slot);
/* Bytes of one block of one layer, including scales. */
HASTEN_API int64_t hasten_kv_block_bytes(int32_t dtype, int32_t kv_heads, int32_t head_dim, int32_t block_size);

HASTEN_API hasten_program* hasten_program_new(hasten_cpu*, hasten_kv*, int32_t max_tokens);
HASTEN_API void hasten_program_free(hasten_program*);

/* Adds a buffer of max_tokens rows and returns its index. */
HASTEN_API int32_t hasten_program_add_buffer(hasten_program*, int32_t width);
HASTEN_API int32_t hasten_program_add_int8_buffer(hasten_program*, int32_t width);
/* A buffer that shares the columns of `buffer` from `column` on, a multiple of 16. */
HASTEN_API int32_t hasten_program_add_slice(hasten_program*, int32_t buffer, int32_t column);
HASTEN_API float* hasten_program_buffer_data(hasten_program*, int32_t buffer, int64_t* stride);

/* Recording. Instructions before the first layer form the prologue. After begin_head, instructions run on the rows of
   logits_indices. */
HASTEN_API void hasten_program_begin_layer(hasten_program*);
HASTEN_API void hasten_program_begin_head(hasten_program*);
HASTEN_API void hasten_program_embed(hasten_program*, const hasten_matrix*, int32_t by_position, int32_t out);
HASTEN_API int32_t hasten_program_rotary_table(hasten_program*, const float* inverse_frequencies, int32_t half, float factor);
HASTEN_API void hasten_program_norm(hasten_program*, int32_t kind, int32_t x, int32_t width, const float* weight, const float* bias,
                                    float eps, int32_t out, int32_t quantized);
HASTEN_API void hasten_program_linear(hasten_program*, const hasten_matrix*, int32_t x, int32_t quantized, const float* bias,
                                      int32_t out, int32_t add, int32_t gated, int32_t activation);
HASTEN_API void hasten_program_activate(hasten_program*, int32_t activation, int32_t gated, int32_t x, int32_t width, int32_t out,
                                        int32_t quantized);
HASTEN_API void hasten_program_rope_and_cache(hasten_program*, int32_t layer, int32_t qkv, int32_t heads, int32_t norm,
                                              const float* q_weight, const float* q_bias, const float* k_weight,
                                              const float* k_bias, float eps, int32_t rotary_table);
HASTEN_API void hasten_program_attend(hasten_program*, int32_t layer, int32_t qkv, int32_t heads, float scale, float soft_cap,
                                      int32_t window, const float* sinks, int32_t out);
/* Copies the rows of logits_indices. */
HASTEN_API void hasten_program_gather(hasten_program*, int32_t x, int32_t width, int32_t out);

/* The inputs of one step: the tokens of all sequences, concatenated. For group g and sequence s, let t = 2 * (g * num_sequences +
   s). The block table begins at block_ids[block_tables[t]], and its first entry is block number block_tables[t + 1] of the
   sequence.

   A sequence of at most 64 tokens may be a draft tree. Then bit j of tree_mask[t] is set if token t attends to token j of its
   sequence, itself included: its ancestors. The position of a token is start + number of ancestors, but it is written to the slot
   of position start + its index in the sequence. The masks of other sequences are 0. */
typedef struct hasten_step {
    int32_t num_tokens, num_sequences, num_logits, num_groups;
    int32_t first_layer, last_layer; /* runs layers [first_layer, last_layer); embeds only if first_layer is 0 */
    const int32_t* token_ids;        /* [num_tokens] */
    const int32_t* sequences;        /* [num_sequences][3]: begin, end, start */
    const int32_t* block_tables;     /* [num_groups][num_sequences][2] */
    const int32_t* block_ids;
    const int32_t* logits_indices; /* [num_logits]: tokens whose logits are computed */
    const uint64_t* tree_mask;     /* [num_tokens], or null if no sequence is a tree */
    float* logits;                 /* [num_logits][logits_stride] */
    int64_t logits_stride;         /* at least the outputs of the last matrix, rounded up to 16 */
} hasten_step;

/* Runs one step and blocks until it is done. Callers of one cpu take turns. Returns 1 when out of memory, else 0. */
HASTEN_API int32_t hasten_program_run(hasten_program*, const hasten_step*);

/* Sampling parameters of one row. temperature 0 is greedy; 0 turns the other filters off. */
typedef struct hasten_sampling_params {
    uint64_t seed;
    float temperature, tail_mass, min_p; /* tail_mass: 1 - top_p */
    int32_t top_k;
} hasten_sampling_params;

/* With the seed, the key of the row's Gumbel noise. */
typedef struct hasten_noise_key {
    int64_t sequence, position;
} hasten_noise_key;

/* Samples the token of each row of logits [rows][stride]. Returns the number of undecided rows, for which decided[row] is 0 and
   tokens[row] is unspecified. A row is undecided if it holds a NaN or an infinity, or if rounding or too many candidates leave its
   token uncertain. */
HASTEN_API int32_t hasten_sample_tokens(hasten_cpu*, const float* logits, int32_t rows, int64_t vocab_size, int64_t stride,
                                        const hasten_sampling_params* params, const hasten_noise_key* keys, int32_t* tokens,
                                        uint8_t* decided);

#ifdef __cplusplus
}
#endif
