// The C interface of programs: checks what is recorded against limits.h and the buffers, then records it.
#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "handles.h"

using namespace hasten;

namespace {

Program& get(hasten_program* program) { return program->program; }

bool is_width(int64_t width) { return in_range(width, 1, kMaxFeatures); }
bool is_norm(int64_t kind) { return in_range(kind, 0, static_cast<int64_t>(NormKind::layer)); }
bool is_activation(int64_t kind) { return in_range(kind, 0, static_cast<int64_t>(Activation::gelu_tanh)); }

// Whether exactly one of a float and an int8 buffer is given, and has this width.
bool is_input(const Program& p, int64_t x, int64_t quantized, int64_t width) {
    if (quantized == HASTEN_NONE) return p.has_columns(x, width);
    return x == HASTEN_NONE && p.has_int8_columns(quantized, width);
}

// Whether a float buffer, an int8 buffer or both are given, and have this width.
bool is_output(const Program& p, int64_t out, int64_t quantized, int64_t width) {
    if (out == HASTEN_NONE) return p.has_int8_columns(quantized, width);
    return p.has_columns(out, width) && (quantized == HASTEN_NONE || p.has_int8_columns(quantized, width));
}

// The layer of the KV pool, or null if there is none or its heads do not fit the buffers. columns: of q, k and v that are read.
const KvLayer* find_kv_layer(const Program& p, int64_t layer, int64_t qkv, int64_t heads) {
    if (!in_range(layer, 0, int64_t{p.kv().num_layers()} - 1)) return nullptr;
    const KvLayer& kv = p.kv().layer(static_cast<int32_t>(layer));
    if (!in_range(heads, 1, kMaxFeatures) || heads % kv.kv_heads != 0) return nullptr;
    return p.has_columns(qkv, (heads + 2 * int64_t{kv.kv_heads}) * kv.head_dim) ? &kv : nullptr;
}

}  // namespace

extern "C" {

int32_t hasten_program_new(hasten_cpu* cpu, hasten_kv* kv, int64_t max_tokens, hasten_program** program) {
    return guarded([&]() -> int32_t {
        if (!in_range(max_tokens, 1, kMaxTokens)) return HASTEN_INVALID_ARGUMENT;
        *program = new hasten_program{Program(cpu->kernels, cpu->threads, kv->pool, static_cast<int32_t>(max_tokens)), {}};
        return HASTEN_OK;
    });
}

void hasten_program_free(hasten_program* program) { delete program; }

int32_t hasten_program_add_buffer(hasten_program* program, int64_t width) {
    return guarded(
        [&] { return is_width(width) ? get(program).add_buffer(static_cast<int32_t>(width)) : int32_t{HASTEN_INVALID_ARGUMENT}; });
}

int32_t hasten_program_add_slice(hasten_program* program, int64_t buffer, int64_t column, int64_t width) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        if (!in_range(column, 0, kMaxFeatures) || !is_width(width) || column % kLanes != 0 || width % kLanes != 0)
            return HASTEN_INVALID_ARGUMENT;
        if (!p.has_columns(buffer, column + width)) return HASTEN_INVALID_ARGUMENT;
        return p.add_slice(static_cast<int32_t>(buffer), static_cast<int32_t>(column), static_cast<int32_t>(width));
    });
}

int32_t hasten_program_add_int8_buffer(hasten_program* program, int64_t width) {
    return guarded([&]() -> int32_t {
        if (!in_range(width, 1, kMaxInt8Inputs)) return HASTEN_INVALID_ARGUMENT;
        return get(program).add_int8_buffer(static_cast<int32_t>(width));
    });
}

int32_t hasten_program_buffer_data(hasten_program* program, int64_t buffer, float** data, int64_t* stride) {
    if (!get(program).has_columns(buffer, 1)) return HASTEN_INVALID_ARGUMENT;
    const Rows rows = get(program).rows(static_cast<int32_t>(buffer));
    *data = rows.data;
    *stride = rows.stride;
    return HASTEN_OK;
}

int32_t hasten_program_begin_layer(hasten_program* program) {
    return guarded([&]() -> int32_t {
        if (get(program).scope() == RowScope::logits) return HASTEN_INVALID_ARGUMENT;
        get(program).begin_layer();
        return HASTEN_OK;
    });
}

int32_t hasten_program_begin_head(hasten_program* program) {
    if (get(program).scope() == RowScope::logits) return HASTEN_INVALID_ARGUMENT;
    get(program).begin_head();
    return HASTEN_OK;
}

int32_t hasten_program_embed(hasten_program* program, const hasten_matrix* matrix, int64_t by_position, int64_t out) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        const Matrix& m = matrix->matrix;
        if (!p.has_whole_rows(out, m.in_features)) return HASTEN_INVALID_ARGUMENT;
        p.add(std::make_unique<Embed>(p.kernels(), m, by_position != 0, p.rows(static_cast<int32_t>(out))));
        by_position != 0 ? p.limit_positions(m.out_features) : p.limit_token_ids(m.out_features);
        return HASTEN_OK;
    });
}

int32_t hasten_program_rotary_table(hasten_program* program, const float* inverse_frequencies, int64_t half, float factor) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        if (!in_range(half, 1, kMaxHeadDim / 2)) return HASTEN_INVALID_ARGUMENT;
        const int32_t index = p.add_rotary_table(static_cast<int32_t>(half));
        if (index < 0) return index;
        RotaryTableTask task{};
        task.inverse_frequencies = inverse_frequencies;
        task.half = static_cast<int32_t>(half);
        task.factor = factor;
        task.cos_sin = p.rotary_table(index);
        p.add(std::make_unique<RotaryTable>(p.kernels(), task));
        return index;
    });
}

int32_t hasten_program_norm(hasten_program* program, int64_t kind, int64_t x, int64_t width, const float* weight, const float* bias,
                            float eps, int64_t out, int64_t quantized) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        if (!is_norm(kind) || !is_width(width) || !p.has_columns(x, width) || !is_output(p, out, quantized, width))
            return HASTEN_INVALID_ARGUMENT;
        NormTask task{};
        task.kind = static_cast<NormKind>(kind);
        task.x = p.rows(static_cast<int32_t>(x));
        task.width = static_cast<int32_t>(width);
        task.weight = weight;
        task.bias = bias;
        task.eps = eps;
        task.out = p.rows(static_cast<int32_t>(out));
        task.quantized = p.quantized_rows(static_cast<int32_t>(quantized));
        p.add(std::make_unique<Norm>(p.kernels(), p.scope(), task));
        return HASTEN_OK;
    });
}

int32_t hasten_program_linear(hasten_program* program, const hasten_matrix* matrix, int64_t x, int64_t quantized, const float* bias,
                              int64_t out, int64_t add, int64_t gated, int64_t activation) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        const Matrix& m = matrix->matrix;
        const int64_t width = gated != 0 ? m.out_features / 2 : m.out_features;
        const bool has_int8_input = quantized != HASTEN_NONE;
        if (!is_input(p, x, quantized, m.in_features) || !is_activation(activation)) return HASTEN_INVALID_ARGUMENT;
        if (has_int8_input && (!is_integer(m.dtype) || m.in_features > kMaxInt8Inputs)) return HASTEN_INVALID_ARGUMENT;
        if (gated != 0 && m.out_features % (2 * kLanes) != 0) return HASTEN_INVALID_ARGUMENT;
        if (out == HASTEN_LOGITS ? p.scope() != RowScope::logits || add != 0 : !p.has_columns(out, width))
            return HASTEN_INVALID_ARGUMENT;
        LinearTask task{};
        task.matrix = &m;
        task.x = p.rows(static_cast<int32_t>(x));
        task.quantized = p.quantized_rows(static_cast<int32_t>(quantized));
        task.bias = bias;
        task.out = p.rows(static_cast<int32_t>(out));  // null for HASTEN_LOGITS; set in each step
        task.add = add != 0;
        task.gated = gated != 0;
        task.activation = static_cast<Activation>(activation);
        if (p.kernels().convert_to_bf16 != nullptr && is_bf16(m.dtype) && task.x.data != nullptr) {
            const int32_t in_features = m.in_features;
            task.x_bf16 = p.bf16_rows(in_features);
            if (task.x_bf16.data == nullptr) return HASTEN_OUT_OF_MEMORY;
            p.add(
                std::make_unique<ConvertToBf16>(p.kernels(), p.scope(), ConvertToBf16Task{task.x, in_features, task.x_bf16, 0, 0}));
        }
        if (is_coded(m.dtype) && task.x.data != nullptr) {
            task.x_int16 = p.int16_rows(m.in_features);
            if (task.x_int16.data == nullptr) return HASTEN_OUT_OF_MEMORY;
            p.add(std::make_unique<ConvertToInt16>(p.kernels(), p.scope(),
                                                   ConvertToInt16Task{task.x, m.in_features, task.x_int16, 0, 0}));
        }
        if (out == HASTEN_LOGITS) p.limit_logits_stride(round_up(width, kLanes));
        p.add(std::make_unique<Linear>(p.kernels(), p.scope(), task));
        return HASTEN_OK;
    });
}

int32_t hasten_program_activate(hasten_program* program, int64_t activation, int64_t gated, int64_t x, int64_t width, int64_t out,
                                int64_t quantized) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        if (!is_activation(activation) || !is_width(width) || !is_output(p, out, quantized, width)) return HASTEN_INVALID_ARGUMENT;
        if (!p.has_columns(x, gated != 0 ? 2 * width : width)) return HASTEN_INVALID_ARGUMENT;
        ActivateTask task{};
        task.activation = static_cast<Activation>(activation);
        task.gated = gated != 0;
        task.x = p.rows(static_cast<int32_t>(x));
        task.width = static_cast<int32_t>(width);
        task.out = p.rows(static_cast<int32_t>(out));
        task.quantized = p.quantized_rows(static_cast<int32_t>(quantized));
        p.add(std::make_unique<Activate>(p.kernels(), p.scope(), task));
        return HASTEN_OK;
    });
}

int32_t hasten_program_rope_and_cache(hasten_program* program, int64_t layer, int64_t qkv, int64_t heads, int64_t norm,
                                      const float* q_weight, const float* q_bias, const float* k_weight, const float* k_bias,
                                      float eps, int64_t rotary_table) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        const KvLayer* kv = find_kv_layer(p, layer, qkv, heads);
        if (kv == nullptr || !is_norm(norm) || p.scope() == RowScope::logits) return HASTEN_INVALID_ARGUMENT;
        const bool is_rotated = rotary_table != HASTEN_NONE;
        if (is_rotated && (kv->head_dim % 2 != 0 || !p.has_rotary_table(rotary_table, kv->head_dim / 2)))
            return HASTEN_INVALID_ARGUMENT;
        RopeAndCacheTask task{};
        task.kv = kv;
        task.qkv = p.rows(static_cast<int32_t>(qkv));
        task.heads = static_cast<int32_t>(heads);
        task.kv_heads = kv->kv_heads;
        task.head_dim = kv->head_dim;
        task.norm = static_cast<NormKind>(norm);
        task.q_weight = q_weight;
        task.q_bias = q_bias;
        task.k_weight = k_weight;
        task.k_bias = k_bias;
        task.eps = eps;
        task.cos_sin = p.rotary_table(static_cast<int32_t>(rotary_table));
        const int32_t group = p.kv().group_of(static_cast<int32_t>(layer));
        p.use_group(group);
        p.add(std::make_unique<RopeAndCache>(p.kernels(), group, task));
        return HASTEN_OK;
    });
}

int32_t hasten_program_attend(hasten_program* program, int64_t layer, int64_t qkv, int64_t heads, float scale, float soft_cap,
                              int64_t window, const float* sinks, int64_t out) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        const KvLayer* kv = find_kv_layer(p, layer, qkv, heads);
        if (kv == nullptr || !in_range(window, 0, INT32_MAX) || p.scope() == RowScope::logits) return HASTEN_INVALID_ARGUMENT;
        if (!p.has_whole_rows(out, heads * kv->head_dim)) return HASTEN_INVALID_ARGUMENT;
        AttentionTask task{};
        task.kv = kv;
        task.q = p.rows(static_cast<int32_t>(qkv));
        task.heads = static_cast<int32_t>(heads);
        task.kv_heads = kv->kv_heads;
        task.head_dim = kv->head_dim;
        task.scale = scale;
        task.soft_cap = soft_cap;
        task.window = static_cast<int32_t>(window);
        task.sinks = sinks;
        task.allow_bf16 = p.has_bf16_rows();
        task.out = p.rows(static_cast<int32_t>(out));
        const int32_t group = p.kv().group_of(static_cast<int32_t>(layer));
        p.use_group(group);
        const AttentionPlanner& planner = p.planner_for(group, task);
        p.add(std::make_unique<Attend>(p.kernels(), group, task, planner, false));
        p.add(std::make_unique<Attend>(p.kernels(), group, task, planner, true));
        return HASTEN_OK;
    });
}

int32_t hasten_program_gather(hasten_program* program, int64_t x, int64_t width, int64_t out) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        const bool fits = is_width(width) && p.has_columns(x, width) && p.has_columns(out, width);
        if (!fits || p.scope() != RowScope::logits) return HASTEN_INVALID_ARGUMENT;
        p.add(std::make_unique<Gather>(p.rows(static_cast<int32_t>(x)), static_cast<int32_t>(width),
                                       p.rows(static_cast<int32_t>(out))));
        return HASTEN_OK;
    });
}

int32_t hasten_program_select_columns(hasten_program* program, int64_t x, const int32_t* columns, int64_t width, int64_t out) {
    return guarded([&]() -> int32_t {
        Program& p = get(program);
        if (!is_width(width) || !p.has_columns(x, width) || !p.has_whole_rows(out, width) || x == out)
            return HASTEN_INVALID_ARGUMENT;
        std::vector<int32_t> selected(columns, columns + width);
        if (!std::all_of(selected.begin(), selected.end(), [&](int32_t column) { return p.has_columns(x, int64_t{column} + 1); }))
            return HASTEN_INVALID_ARGUMENT;
        if (std::any_of(selected.begin(), selected.end(), [](int32_t column) { return column < 0; }))
            return HASTEN_INVALID_ARGUMENT;
        p.add(std::make_unique<SelectColumns>(p.scope(), p.is_in_prologue(), p.rows(static_cast<int32_t>(x)), std::move(selected),
                                              p.rows(static_cast<int32_t>(out))));
        return HASTEN_OK;
    });
}

int32_t hasten_program_run(hasten_program* program, const hasten_step* step) {
    return guarded([&] {
        const std::lock_guard<std::mutex> lock(program->run_mutex);
        return get(program).run(*step);
    });
}

}  // extern "C"
