// The C interface: every number out of range is refused by an error code, and a refused call changes nothing.
#include <cstdlib>
#include <limits>
#include <vector>

#include "hasten.h"
#include "test_harness.h"

using check::Random;
using hasten::Dtype;

namespace {

constexpr int64_t kHuge[] = {-1, -(int64_t{1} << 40), (int64_t{1} << 32) + 16, std::numeric_limits<int64_t>::max(),
                             std::numeric_limits<int64_t>::min()};

hasten_limits limits() {
    hasten_limits found;
    hasten_get_limits(&found);
    return found;
}

// A model of one layer: embedding, attention, one product in place, logits. All shapes are free.
struct Shape {
    int64_t dtype = 0, kv_dtype = 0, heads = 2, kv_heads = 1, head_dim = 8, hidden = 16, vocab = 24;
    bool quantized = false, rotary = true;
};

class Model {
public:
    static constexpr int64_t kMaxTokens = 8, kBlocks = 6, kBlockSize = 4;
    int32_t status = HASTEN_OK;  // of the first call that failed
    hasten_cpu* cpu = nullptr;
    hasten_weights* weights = nullptr;
    hasten_kv* kv = nullptr;
    hasten_program* program = nullptr;
    hasten_matrix *embedding = nullptr, *qkv = nullptr, *out = nullptr;
    int64_t residual = 0, rows = 0, attended = 0, gathered = 0, int8_rows = HASTEN_NONE;

    explicit Model(const Shape& shape) : shape_(shape), frequencies_(static_cast<size_t>(round16(shape.head_dim)), 0.1f) {
        const int64_t attention = shape.heads * shape.head_dim, qkv_size = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        check(hasten_cpu_new("avx2", 2, &cpu));
        check(hasten_weights_new(&weights));
        check(hasten_kv_new(kBlocks, kBlockSize, &kv));
        check(hasten_kv_add_layer(kv, 0, shape.kv_dtype, shape.kv_heads, shape.head_dim));
        check(hasten_program_new(cpu, kv, kMaxTokens, &program));
        add_matrix(embedding, shape.vocab, shape.hidden);
        add_matrix(qkv, qkv_size, shape.hidden);
        add_matrix(out, shape.hidden, attention);
        if (status == HASTEN_OK) record(qkv_size, attention);
    }
    ~Model() {
        if (program != nullptr) hasten_program_free(program);
        if (kv != nullptr) hasten_kv_free(kv);
        if (weights != nullptr) hasten_weights_free(weights);
        if (cpu != nullptr) hasten_cpu_free(cpu);
    }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    // A step of two sequences, which tests change before they run it.
    struct Step {
        std::vector<int32_t> tokens{1, 2, 3, 4, 5}, sequences{0, 4, 0, 4, 5, 6}, tables{0, 0, 1, 0}, blocks{2, 0, 5}, logits{3, 4};
        std::vector<uint64_t> tree;
        std::vector<float> out;
        hasten_step step{};

        explicit Step(int64_t vocab) : out(static_cast<size_t>(2 * round16(vocab))) {
            step.num_tokens = 5, step.num_sequences = 2, step.num_logits = 2, step.num_groups = 1, step.num_block_ids = 3;
            step.first_layer = 0, step.last_layer = 1, step.logits_stride = round16(vocab);
        }
        int32_t run(hasten_program* program) {
            step.token_ids = tokens.data(), step.sequences = sequences.data(), step.block_tables = tables.data();
            step.block_ids = blocks.data(), step.logits_indices = logits.data(), step.logits = out.data();
            step.tree_mask = tree.empty() ? nullptr : tree.data();
            return hasten_program_run(program, &step);
        }
    };
    Step step() const { return Step(shape_.vocab); }
    static int64_t round16(int64_t n) { return check::round_up(n, 16); }

private:
    void check(int32_t result) {
        if (status == HASTEN_OK && result < 0) status = result;
    }
    void add_matrix(hasten_matrix*& matrix, int64_t outputs, int64_t inputs) {
        if (status == HASTEN_OK) check(hasten_matrix_new(weights, shape_.dtype, outputs, inputs, &matrix));
        if (status != HASTEN_OK) return;
        std::vector<float> values(static_cast<size_t>(outputs * inputs));
        for (float& value : values) value = 0.3f * random_.normal();
        check(hasten_matrix_pack(cpu, matrix, values.data(), 0, inputs, 1, 0, outputs));
    }
    void record(int64_t qkv_size, int64_t attention) {
        residual = hasten_program_add_buffer(program, shape_.hidden);
        rows = hasten_program_add_buffer(program, qkv_size);
        attended = hasten_program_add_buffer(program, attention);
        gathered = hasten_program_add_buffer(program, shape_.hidden);
        for (const int64_t buffer : {residual, rows, attended, gathered}) check(static_cast<int32_t>(buffer));
        if (status != HASTEN_OK) return;
        check(hasten_program_embed(program, embedding, 0, residual));
        const int32_t table =
            shape_.rotary ? hasten_program_rotary_table(program, frequencies_.data(), shape_.head_dim / 2, 1.0f) : HASTEN_NONE;
        check(hasten_program_begin_layer(program));
        int64_t x = residual;
        if (shape_.quantized) {
            int8_rows = hasten_program_add_int8_buffer(program, shape_.hidden);
            check(static_cast<int32_t>(int8_rows));
            check(hasten_program_norm(program, 0, residual, shape_.hidden, nullptr, nullptr, 0.0f, HASTEN_NONE, int8_rows));
            x = HASTEN_NONE;
        }
        check(hasten_program_linear(program, qkv, x, int8_rows, nullptr, rows, 0, 0, 0));
        check(hasten_program_rope_and_cache(program, 0, rows, shape_.heads, 0, nullptr, nullptr, nullptr, nullptr, 0.0f, table));
        check(hasten_program_attend(program, 0, rows, shape_.heads, 0.3f, 0.0f, 0, nullptr, attended));
        check(hasten_program_linear(program, out, attended, HASTEN_NONE, nullptr, residual, 1, 0, 0));
        check(hasten_program_begin_head(program));
        check(hasten_program_gather(program, residual, shape_.hidden, gathered));
        check(hasten_program_linear(program, embedding, gathered, HASTEN_NONE, nullptr, HASTEN_LOGITS, 0, 0, 0));
    }

    Shape shape_;
    std::vector<float> frequencies_;
    Random random_{7};
};

#define REFUSED(call) CHECK((call) == HASTEN_INVALID_ARGUMENT)

}  // namespace

TEST(api_runs_a_program_and_refuses_wrong_steps) {
    Model model{Shape{}};
    CHECK(model.status == HASTEN_OK);
    Model::Step first = model.step();
    CHECK(first.run(model.program) == HASTEN_OK);
    const auto refuses = [&](auto change) {
        Model::Step step = model.step();
        change(step);
        REFUSED(step.run(model.program));
    };
    for (int64_t hasten_step::* count : {&hasten_step::num_tokens, &hasten_step::num_sequences, &hasten_step::num_logits,
                                         &hasten_step::num_groups, &hasten_step::num_block_ids, &hasten_step::last_layer}) {
        for (const int64_t value : kHuge) refuses([&](Model::Step& step) { step.step.*count = value; });
    }
    refuses([](Model::Step& step) { step.step.num_tokens = Model::kMaxTokens + 1; });
    refuses([](Model::Step& step) { step.step.num_tokens = 6; });  // a token of no sequence
    refuses([](Model::Step& step) { step.step.num_groups = 0; });
    refuses([](Model::Step& step) { step.step.last_layer = 2; });
    refuses([](Model::Step& step) { step.step.first_layer = -1; });
    refuses([](Model::Step& step) { step.step.logits_stride = 16; });
    for (const int32_t value : {-1, 24, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
        refuses([&](Model::Step& step) { step.tokens[2] = value; });
        refuses([&](Model::Step& step) { step.logits[1] = value; });
        refuses([&](Model::Step& step) { step.blocks[1] = value; });
        refuses([&](Model::Step& step) { step.sequences[1] = value; });
        refuses([&](Model::Step& step) { step.sequences[5] = value; });
        refuses([&](Model::Step& step) { step.tables[0] = value; });
        refuses([&](Model::Step& step) { step.tables[3] = value; });
    }
    // In a tree a token sees itself and earlier tokens.
    refuses([](Model::Step& step) { step.tree = {1, 2, 8, 8, 0}; });
    refuses([](Model::Step& step) { step.tree = {1, 1, 5, 13, 0}; });
    Model::Step last = model.step();
    CHECK(last.run(model.program) == HASTEN_OK);
    CHECK(first.out == last.out);
}

TEST(api_refuses_shapes_beyond_its_limits) {
    const hasten_limits most = limits();
    Model model{Shape{}};
    hasten_cpu* cpu = nullptr;
    hasten_kv* kv = nullptr;
    hasten_program* program = nullptr;
    hasten_matrix* matrix = nullptr;
    for (const int64_t value : kHuge) {
        REFUSED(hasten_cpu_new("avx2", value, &cpu));
        REFUSED(hasten_kv_new(value, 16, &kv));
        REFUSED(hasten_kv_new(4, value, &kv));
        REFUSED(hasten_kv_add_layer(model.kv, value, 0, 1, 8));
        REFUSED(hasten_kv_add_layer(model.kv, 0, value, 1, 8));
        REFUSED(hasten_kv_add_layer(model.kv, 0, 0, value, 8));
        REFUSED(hasten_kv_add_layer(model.kv, 0, 0, 1, value));
        REFUSED(hasten_kv_copy_block(model.kv, value, 0, 0));
        REFUSED(hasten_kv_copy_block(model.kv, 0, value, 0));
        REFUSED(hasten_kv_copy_block(model.kv, 0, 0, value));
        uint8_t bytes[4096] = {};
        const int64_t valid[] = {0}, wrong[] = {0, value};
        REFUSED(hasten_kv_read_blocks(model.kv, value, valid, 1, bytes));
        REFUSED(hasten_kv_read_blocks(model.kv, 0, wrong, 2, bytes));
        REFUSED(hasten_kv_read_blocks(model.kv, 0, valid, value, bytes));
        REFUSED(hasten_kv_write_blocks(model.kv, value, valid, 1, bytes));
        REFUSED(hasten_kv_write_blocks(model.kv, 0, wrong, 2, bytes));
        REFUSED(hasten_kv_write_blocks(model.kv, 0, valid, value, bytes));
        for (int i = 0; i < 5; ++i) {
            int64_t at[5] = {};
            at[i] = value;
            REFUSED(hasten_kv_move_token(model.kv, at[0], at[1], at[2], at[3], at[4]));
        }
        REFUSED(hasten_kv_block_bytes(value, 1, 8, 16));
        REFUSED(hasten_kv_block_bytes(0, 1, 8, value));
        REFUSED(hasten_matrix_new(model.weights, value, 4, 4, &matrix));
        REFUSED(hasten_matrix_new(model.weights, 0, value, 4, &matrix));
        REFUSED(hasten_matrix_new(model.weights, 0, 4, value, &matrix));
        REFUSED(hasten_program_new(model.cpu, model.kv, value, &program));
        REFUSED(hasten_program_add_buffer(model.program, value));
        REFUSED(hasten_program_add_int8_buffer(model.program, value));
        REFUSED(hasten_program_add_slice(model.program, value, 0, 16));
        REFUSED(hasten_program_add_slice(model.program, 0, value, 16));
        REFUSED(hasten_program_add_slice(model.program, 0, 0, value));
        float* data;
        int64_t stride;
        REFUSED(hasten_program_buffer_data(model.program, value, &data, &stride));
        REFUSED(hasten_program_rotary_table(model.program, nullptr, value, 1.0f));
        const float x[64] = {};
        float y[64];
        const int32_t ids[] = {24};
        REFUSED(hasten_matrix_multiply(model.cpu, model.out, x, value, nullptr, 0, y));
        REFUSED(hasten_matrix_lookup(model.cpu, model.embedding, ids, 1, y));
        REFUSED(hasten_matrix_pack(model.cpu, model.out, x, value, 1, 1, 0, 1));
        REFUSED(hasten_matrix_pack(model.cpu, model.out, x, 0, 1, 1, value, 1));
        REFUSED(hasten_matrix_pack(model.cpu, model.out, x, 0, 1, 1, 0, value));
        int32_t token;
        uint8_t decided;
        const hasten_sampling_params params{};
        const hasten_noise_key key{};
        REFUSED(hasten_sample_tokens(model.cpu, x, value, 8, 8, &params, &key, &token, &decided));
        REFUSED(hasten_sample_tokens(model.cpu, x, 1, value, 8, &params, &key, &token, &decided));
    }
    REFUSED(hasten_cpu_new("avx2", 0, &cpu));
    REFUSED(hasten_cpu_new("avx2", most.threads + 1, &cpu));
    REFUSED(hasten_cpu_new("avx2", std::numeric_limits<int32_t>::max(), &cpu));
    REFUSED(hasten_kv_add_layer(model.kv, 0, 0, 1, most.head_dim + 1));
    REFUSED(hasten_kv_add_layer(model.kv, 0, 4, 1, 8));
    REFUSED(hasten_kv_new(4, most.block_size + 1, &kv));
    REFUSED(hasten_program_new(model.cpu, model.kv, most.tokens + 1, &program));
    REFUSED(hasten_program_add_int8_buffer(model.program, most.int8_inputs + 1));
    REFUSED(hasten_matrix_multiply(model.cpu, model.out, nullptr, 1, nullptr, 1, nullptr));  // float weights
    CHECK(hasten_cpu_new("sse9", 1, &cpu) == HASTEN_UNSUPPORTED);
    CHECK(cpu == nullptr && kv == nullptr && program == nullptr && matrix == nullptr);
}

TEST(api_refuses_instructions_that_do_not_fit_their_buffers) {
    Model model{Shape{}};
    hasten_program* program = nullptr;
    CHECK(hasten_program_new(model.cpu, model.kv, 4, &program) == HASTEN_OK);
    const int32_t narrow = hasten_program_add_buffer(program, 8), hidden = hasten_program_add_buffer(program, 16);
    const int32_t rows = hasten_program_add_buffer(program, 32), int8 = hasten_program_add_int8_buffer(program, 16);
    const int32_t slice = hasten_program_add_slice(program, rows, 16, 16);
    CHECK(hasten_program_begin_layer(program) == HASTEN_OK);
    REFUSED(hasten_program_add_slice(program, rows, 16, 32));
    REFUSED(hasten_program_embed(program, model.embedding, 0, narrow));
    REFUSED(hasten_program_embed(program, model.embedding, 0, slice));
    for (const int64_t buffer : {int64_t{narrow}, int64_t{99}, int64_t{HASTEN_NONE}, int64_t{1} << 32}) {
        REFUSED(hasten_program_norm(program, 1, buffer, 16, nullptr, nullptr, 1e-6f, hidden, HASTEN_NONE));
        REFUSED(hasten_program_norm(program, 1, hidden, 16, nullptr, nullptr, 1e-6f, buffer, HASTEN_NONE));
        REFUSED(hasten_program_linear(program, model.qkv, buffer, HASTEN_NONE, nullptr, rows, 0, 0, 0));
        REFUSED(hasten_program_linear(program, model.qkv, hidden, HASTEN_NONE, nullptr, buffer, 0, 0, 0));
        REFUSED(hasten_program_activate(program, 1, 0, buffer, 16, hidden, HASTEN_NONE));
        REFUSED(hasten_program_activate(program, 1, 1, hidden, 16, buffer, HASTEN_NONE));
        REFUSED(hasten_program_rope_and_cache(program, 0, buffer, 2, 0, nullptr, nullptr, nullptr, nullptr, 0, HASTEN_NONE));
        REFUSED(hasten_program_attend(program, 0, buffer, 2, 1.0f, 0.0f, 0, nullptr, hidden));
        REFUSED(hasten_program_attend(program, 0, rows, 2, 1.0f, 0.0f, 0, nullptr, buffer));
    }
    REFUSED(hasten_program_norm(program, 3, hidden, 16, nullptr, nullptr, 1e-6f, hidden, HASTEN_NONE));
    REFUSED(hasten_program_linear(program, model.qkv, hidden, int8, nullptr, rows, 0, 0, 0));               // two inputs
    REFUSED(hasten_program_linear(program, model.qkv, HASTEN_NONE, int8, nullptr, rows, 0, 0, 0));          // float weights
    REFUSED(hasten_program_linear(program, model.embedding, hidden, HASTEN_NONE, nullptr, rows, 0, 1, 0));  // halves of 12
    REFUSED(hasten_program_linear(program, model.embedding, hidden, HASTEN_NONE, nullptr, HASTEN_LOGITS, 0, 0, 0));
    REFUSED(hasten_program_linear(program, model.qkv, hidden, HASTEN_NONE, nullptr, rows, 0, 0, 4));
    for (const int64_t heads : {0, -2, 7, 1 << 28}) {
        REFUSED(hasten_program_attend(program, 0, rows, heads, 1.0f, 0.0f, 0, nullptr, hidden));
    }
    REFUSED(hasten_program_attend(program, 1, rows, 2, 1.0f, 0.0f, 0, nullptr, hidden));
    REFUSED(hasten_program_attend(program, 0, rows, 2, 1.0f, 0.0f, -1, nullptr, hidden));
    const float frequencies[16] = {};
    const int32_t table = hasten_program_rotary_table(program, frequencies, 3, 1.0f);
    REFUSED(
        hasten_program_rope_and_cache(program, 0, rows, 2, 0, nullptr, nullptr, nullptr, nullptr, 0, table));  // of 6 dimensions
    REFUSED(hasten_program_gather(program, hidden, 16, hidden));                                               // before the head
    CHECK(hasten_program_begin_head(program) == HASTEN_OK);
    REFUSED(hasten_program_begin_layer(program));
    REFUSED(hasten_program_begin_head(program));
    REFUSED(hasten_program_gather(program, hidden, 16, narrow));
    hasten_program_free(program);
}

// Random shapes: a program is refused, or it runs and its logits are finite. HASTEN_EXHAUSTIVE=1: 500 shapes.
TEST(api_shape_fuzz) {
    Random random(41);
    int num_run = 0;
    const int rounds = std::getenv("HASTEN_EXHAUSTIVE") != nullptr ? 500 : 60;
    for (int round = 0; round < rounds; ++round) {
        Shape shape;
        shape.dtype = random.integer(0, 4);
        shape.kv_dtype = random.integer(0, 3);
        shape.kv_heads = random.integer(1, 3);
        shape.heads = shape.kv_heads * random.integer(1, 4);
        shape.head_dim = round % 3 == 0 ? random.integer(1, 600) : random.integer(1, 48);
        shape.hidden = random.integer(1, 200);
        shape.vocab = random.integer(6, 80);
        shape.rotary = random.coin();
        shape.quantized = shape.dtype >= 3 && random.coin();
        Model model(shape);
        const bool fits = shape.head_dim <= limits().head_dim && (!shape.rotary || shape.head_dim % 2 == 0);
        CHECK(model.status == (fits ? HASTEN_OK : HASTEN_INVALID_ARGUMENT));
        if (model.status != HASTEN_OK) continue;
        Model::Step step = model.step();
        CHECK(step.run(model.program) == HASTEN_OK);
        for (const float logit : step.out) CHECK(std::isfinite(logit));
        ++num_run;
    }
    CHECK(num_run > rounds / 3);
}
