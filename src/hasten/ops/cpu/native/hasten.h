/* The C interface of the native CPU backend: plain pointers and integers, no C++ exceptions, no output.

   A cpu owns kernels and threads. Weights own packed matrices. A kv owns the paged pool of keys and values. A program is the
   recorded step of one model. Integers name the buffers of a program; HASTEN_NONE means no buffer, HASTEN_LOGITS the logits of the
   step.

   Functions that may fail return an error below 0. They check every number that they are given, since numbers come from files and
   callers, and change nothing if they refuse one. They cannot check that memory behind a pointer is as large as its comment says.
   Sizes, counts and indices have 64 bits, so that no caller's integer is cut off on its way here. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HASTEN_API __attribute__((visibility("default")))
#define HASTEN_ABI 9

enum { HASTEN_NONE = -1, HASTEN_LOGITS = -2 };

enum {
    HASTEN_OK = 0,
    HASTEN_OUT_OF_MEMORY = -1,
    HASTEN_INVALID_ARGUMENT = -2, /* a number out of range, or a shape that the kernels do not take */
    HASTEN_UNSUPPORTED = -3,      /* this machine does not run the instruction set */
    HASTEN_NO_THREADS = -4,       /* the system refuses to start a thread */
    HASTEN_NOT_FINITE = -5,       /* a weight is NaN or infinite */
    HASTEN_FAILED = -6
};

typedef struct hasten_cpu hasten_cpu;
typedef struct hasten_weights hasten_weights;
typedef struct hasten_matrix hasten_matrix;
typedef struct hasten_kv hasten_kv;
typedef struct hasten_program hasten_program;

HASTEN_API int32_t hasten_abi(void);

/* The largest values that the functions below accept. Nothing else knows these numbers. */
typedef struct hasten_limits {
    int64_t threads;
    int64_t features;    /* inputs or outputs of a matrix, and columns of a buffer */
    int64_t int8_inputs; /* inputs of a matrix in groups, or multiplied with int8 activations */
    int64_t head_dim;
    int64_t block_size; /* tokens */
    int64_t tokens;     /* of one step */
} hasten_limits;
HASTEN_API void hasten_get_limits(hasten_limits*);

/* isa: "avx2", "avxvnni", "avx512" or "amx". Returns 1 if it runs on this machine, else 0. */
HASTEN_API int32_t hasten_runs_isa(const char* isa);

/* isa: null for the fastest. */
HASTEN_API int32_t hasten_cpu_new(const char* isa, int64_t threads, hasten_cpu** cpu);
HASTEN_API void hasten_cpu_free(hasten_cpu*);
HASTEN_API const char* hasten_cpu_isa(const hasten_cpu*);

HASTEN_API int32_t hasten_weights_new(hasten_weights** weights);
HASTEN_API void hasten_weights_free(hasten_weights*);
HASTEN_API int64_t hasten_weights_bytes(const hasten_weights*);

/* dtype: 0 float32, 1 bfloat16 (losslessly compressed to 12 bits), 2 float16, 3 int8, 4 int4. Freed with its weights. */
HASTEN_API int32_t hasten_matrix_new(hasten_weights*, int64_t dtype, int64_t out_features, int64_t in_features,
                                     hasten_matrix** matrix);
/* A matrix that was quantised before. dtype: 6 codes of 4 bits, 7 codes of 8 bits, 8 FP8 e4m3. Groups of 16, 32, 64 or 128 inputs
   of an output share a scale. A weight is scale * code + offset; without offsets scale * (code - 8) or scale * (code - 128), or
   scale * the FP8 number. Scales and offsets are floats. is_nested: they are bytes, times a float16 for all those of 256 inputs. */
HASTEN_API int32_t hasten_matrix_new_grouped(hasten_weights*, int64_t dtype, int64_t out_features, int64_t in_features,
                                             int64_t group_inputs, int64_t has_offsets, int64_t is_nested, hasten_matrix** matrix);
/* Packs output features as hasten_matrix_pack does, from codes [rows, row_stride] of one byte and scales and offsets [rows,
   groups]. Also for a matrix of dtype 3, with codes around 128 and scales [rows]. Refuses scales and offsets that are not finite,
   and FP8 numbers that are NaN. */
HASTEN_API int32_t hasten_matrix_pack_codes(hasten_cpu*, hasten_matrix*, const uint8_t* codes, int64_t row_stride,
                                            const float* scales, const float* offsets, int64_t row, int64_t rows);
/* The same for nested groups: scale = block_scales * scales and offset = block_offsets * offsets, with the bits of a float16 for
   each 256 inputs. */
HASTEN_API int32_t hasten_matrix_pack_nested(hasten_cpu*, hasten_matrix*, const uint8_t* codes, int64_t row_stride,
                                             const int8_t* scales, const int8_t* offsets, const uint16_t* block_scales,
                                             const uint16_t* block_offsets, int64_t row, int64_t rows);
/* Packs output features [row, row + rows), each once, from a tensor of dtype 0, 1 or 2. Strides are in elements. Refuses weights
   that are not finite, after which the matrix is unusable. */
HASTEN_API int32_t hasten_matrix_pack(hasten_cpu*, hasten_matrix*, const void* source, int64_t source_dtype, int64_t row_stride,
                                      int64_t column_stride, int64_t row, int64_t rows);
/* out [rows, out_features] = x W^T + bias in contiguous float32. int8_activations: x is quantised first. */
HASTEN_API int32_t hasten_matrix_multiply(hasten_cpu*, const hasten_matrix*, const float* x, int64_t rows, const float* bias,
                                          int64_t int8_activations, float* out);
/* Embedding lookup: out [count, in_features] = rows `ids` of the matrix, dequantised to float32. */
HASTEN_API int32_t hasten_matrix_lookup(hasten_cpu*, const hasten_matrix*, const int32_t* ids, int64_t count, float* out);

/* A pool of num_blocks blocks of block_size tokens for each layer that is added. Layers of a group share block tables. */
HASTEN_API int32_t hasten_kv_new(int64_t num_blocks, int64_t block_size, hasten_kv** kv);
HASTEN_API void hasten_kv_free(hasten_kv*);
/* Returns the index of the new layer. */
HASTEN_API int32_t hasten_kv_add_layer(hasten_kv*, int64_t group, int64_t dtype, int64_t kv_heads, int64_t head_dim);
HASTEN_API int32_t hasten_kv_copy_block(hasten_kv*, int64_t group, int64_t source, int64_t target);
/* Moves one token to another slot, in every layer of the group. */
HASTEN_API int32_t hasten_kv_move_token(hasten_kv*, int64_t group, int64_t source_block, int64_t source_slot, int64_t target_block,
                                        int64_t target_slot);
/* Copies whole blocks of one layer to `out`, or from `in`: [count][hasten_kv_block_bytes]. A block is keys, values, and for int8
   the scales of keys and of values, in the layout of the pool. */
HASTEN_API int32_t hasten_kv_read_blocks(hasten_kv*, int64_t layer, const int64_t* blocks, int64_t count, void* out);
HASTEN_API int32_t hasten_kv_write_blocks(hasten_kv*, int64_t layer, const int64_t* blocks, int64_t count, const void* in);
/* Returns the bytes of one block of one layer, including scales. */
HASTEN_API int64_t hasten_kv_block_bytes(int64_t dtype, int64_t kv_heads, int64_t head_dim, int64_t block_size);

HASTEN_API int32_t hasten_program_new(hasten_cpu*, hasten_kv*, int64_t max_tokens, hasten_program** program);
HASTEN_API void hasten_program_free(hasten_program*);

/* Adds a buffer of max_tokens rows and returns its index. */
HASTEN_API int32_t hasten_program_add_buffer(hasten_program*, int64_t width);
HASTEN_API int32_t hasten_program_add_int8_buffer(hasten_program*, int64_t width);
/* A buffer of `width` columns of `buffer` from `column` on, both multiples of 16. Returns its index. */
HASTEN_API int32_t hasten_program_add_slice(hasten_program*, int64_t buffer, int64_t column, int64_t width);
HASTEN_API int32_t hasten_program_buffer_data(hasten_program*, int64_t buffer, float** data, int64_t* stride);

/* Recording. Instructions before the first layer form the prologue. After begin_head, instructions run on the rows of
   logits_indices. */
HASTEN_API int32_t hasten_program_begin_layer(hasten_program*);
HASTEN_API int32_t hasten_program_begin_head(hasten_program*);
HASTEN_API int32_t hasten_program_embed(hasten_program*, const hasten_matrix*, int64_t by_position, int64_t out);
/* Returns the index of the table. */
HASTEN_API int32_t hasten_program_rotary_table(hasten_program*, const float* inverse_frequencies, int64_t half, float factor);
HASTEN_API int32_t hasten_program_norm(hasten_program*, int64_t kind, int64_t x, int64_t width, const float* weight,
                                       const float* bias, float eps, int64_t out, int64_t quantized);
HASTEN_API int32_t hasten_program_linear(hasten_program*, const hasten_matrix*, int64_t x, int64_t quantized, const float* bias,
                                         int64_t out, int64_t add, int64_t gated, int64_t activation);
HASTEN_API int32_t hasten_program_activate(hasten_program*, int64_t activation, int64_t gated, int64_t x, int64_t width,
                                           int64_t out, int64_t quantized);
HASTEN_API int32_t hasten_program_rope_and_cache(hasten_program*, int64_t layer, int64_t qkv, int64_t heads, int64_t norm,
                                                 const float* q_weight, const float* q_bias, const float* k_weight,
                                                 const float* k_bias, float eps, int64_t rotary_table);
HASTEN_API int32_t hasten_program_attend(hasten_program*, int64_t layer, int64_t qkv, int64_t heads, float scale, float soft_cap,
                                         int64_t window, const float* sinks, int64_t out);
/* Copies the rows of logits_indices. */
HASTEN_API int32_t hasten_program_gather(hasten_program*, int64_t x, int64_t width, int64_t out);

/* The inputs of one step: the tokens of all sequences, concatenated. For group g and sequence s, let t = 2 * (g * num_sequences +
   s). The block table begins at block_ids[block_tables[t]], and its first entry is block number block_tables[t + 1] of the
   sequence.

   A sequence of at most 64 tokens may be a draft tree. Then bit j of tree_mask[t] is set if token t attends to token j of its
   sequence, itself included: its ancestors. The position of a token is start + number of ancestors, but it is written to the slot
   of position start + its index in the sequence. The masks of other sequences are 0. */
typedef struct hasten_step {
    int64_t num_tokens, num_sequences, num_logits, num_groups, num_block_ids;
    int64_t first_layer, last_layer; /* runs layers [first_layer, last_layer); embeds only if first_layer is 0 */
    const int32_t* token_ids;        /* [num_tokens] */
    const int32_t* sequences;        /* [num_sequences][3]: begin, end, start */
    const int32_t* block_tables;     /* [num_groups][num_sequences][2] */
    const int32_t* block_ids;        /* [num_block_ids] */
    const int32_t* logits_indices;   /* [num_logits]: tokens whose logits are computed */
    const uint64_t* tree_mask;       /* [num_tokens], or null if no sequence is a tree */
    float* logits;                   /* [num_logits][logits_stride] */
    int64_t logits_stride;           /* at least the outputs of the last matrix, rounded up to 16 */
} hasten_step;

/* out = x with its column columns[i] at column i. Before the first layer: only in steps that begin at layer 0. */
HASTEN_API int32_t hasten_program_select_columns(hasten_program*, int64_t x, const int32_t* columns, int64_t width, int64_t out);

/* Runs one step and blocks until it is done. Callers of one cpu take turns. */
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
HASTEN_API int32_t hasten_sample_tokens(hasten_cpu*, const float* logits, int64_t rows, int64_t vocab_size, int64_t stride,
                                        const hasten_sampling_params* params, const hasten_noise_key* keys, int32_t* tokens,
                                        uint8_t* decided);

#ifdef __cplusplus
}
#endif
