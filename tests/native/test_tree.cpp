// Rows whose tokens branch: every token gets the bits that the path to it gets as a plain row, beside rows of all kinds.
#include "attention_problem.h"
#include "step.h"

using namespace check;

namespace {

// Rows that branch beside others, one of them longer than a row that branches may be.
std::vector<Row> rows_around_trees(Random& random) {
    std::vector<Row> rows{{random.integer(0, 60), random.integer(2, 64), true}, {random.integer(0, 40), random.integer(70, 90)}};
    rows.push_back({random.integer(490, 520), random.integer(8, 40), true});  // about where a split ends
    for (int r = random.integer(0, 3); r > 0; --r) rows.push_back({random.integer(0, 90), random.integer(1, 3)});
    for (size_t i = rows.size(); i > 1; --i)
        std::swap(rows[i - 1], rows[static_cast<size_t>(random.integer(0, static_cast<int>(i) - 1))]);
    return rows;
}

Shape small_shape(Random& random, int round) {
    Shape shape = random_shape(random);
    shape.dtype = kDtypes[round % 4];
    shape.slots = kSlots[round / 4 % 4];
    shape.kv_heads = round % 3 + 1;
    shape.heads = shape.kv_heads * (round % 2 == 0 ? 1 : random.integer(2, 3));
    shape.dim = std::min(shape.dim, 40);
    shape.window = round % 2 == 0 ? 0 : random.integer(1, 40);
    return shape;
}

struct Outcome {
    Outcome(const Kernels& kernels, Problem& problem, int threads, Random& random)
        : stride(static_cast<int>(check::round_up(problem.shape.heads * problem.shape.dim, 16))),
          out(int64_t{problem.tokens} * stride) {
        run(kernels, problem.task(kernels, out.data(), stride, threads), random);
    }
    bool same(int token, const Outcome& other, int other_token) const {
        const float *mine = out.data() + int64_t{token} * stride, *theirs = other.out.data() + int64_t{other_token} * stride;
        return std::memcmp(mine, theirs, static_cast<size_t>(stride) * sizeof(float)) == 0;
    }
    int stride;
    Buffer<float> out;
};

}  // namespace

TEST(trees_are_their_definition) {
    for_each_isa([](const Kernels& kernels) {
        Random random(21);
        for (int round = 0; round < 24; ++round) {
            Problem problem(small_shape(random, round), rows_around_trees(random), random);
            check_against_reference(kernels, problem, random.integer(1, 4), random);
        }
    });
}

TEST(trees_have_the_bits_of_their_paths) {
    Random random(22);
    for (int round = 0; round < 48; ++round) {
        Problem problem(small_shape(random, round), rows_around_trees(random), random);
        for_each_isa([&](const Kernels& kernels) {
            const Outcome outcome(kernels, problem, 1 << random.integer(0, 5), random);
            for (size_t r = 0; r < problem.rows.size(); ++r) {
                if (!problem.rows[r].tree) continue;
                for (int i = 0; i < 6; ++i) {
                    const int token = random.integer(0, problem.rows[r].tokens - 1);
                    const std::vector<int> path = problem.path(r, token);
                    Problem plain(problem, r, token, random);
                    if (in_bf16_tiles(kernels, plain.shape, plain.rows[0], plain.rows[0].tokens)) continue;
                    const Outcome alone(kernels, plain, 1 << random.integer(0, 5), random);
                    for (size_t j = 0; j < path.size(); ++j) {
                        CHECK(outcome.same(problem.spans[r].begin + path[j], alone, static_cast<int>(j)));
                    }
                }
            }
        });
    }
}

// A token that sees its parent's sister in place of its parent must show.
TEST(trees_show_one_wrong_bit) {
    for_each_isa([](const Kernels& kernels) {
        Random random(23);
        for (Dtype dtype : kDtypes) {
            Shape shape;
            shape.dtype = dtype;
            Problem problem(shape, {{30, 4, true}}, random);
            problem.parents[0] = {-1, 0, 0, 1};
            problem.trees[0] = {0b0001, 0b0011, 0b0101, 0b1011};
            const Outcome right(kernels, problem, 1, random);
            problem.trees[0][3] = 0b1101;
            const Outcome wrong(kernels, problem, 1, random);
            for (int token = 0; token < 3; ++token) CHECK(right.same(token, wrong, token));
            CHECK(!right.same(3, wrong, 3));
        }
    });
}

// What is derived from a step: tokens of rows that branch have slots one after the other and the positions of their paths.
TEST(step_with_rows_that_branch) {
    KvPool pool(40, 5);
    CHECK(pool.add_layer(0, Dtype::f32, 1, 16) == 0);
    constexpr int kLong = 70;
    std::vector<int32_t> ids(kLong + 5, 1);
    const std::vector<int32_t> rows{0, kLong, 3, kLong, kLong + 4, 12, kLong + 4, kLong + 5, 0};
    std::vector<int32_t> blocks;
    for (int b = 0; b < 15; ++b) blocks.push_back(b + 2);
    blocks.insert(blocks.end(), {31, 30, 39});  // the second row's: blocks 1 to 3 of its sequence
    const std::vector<int32_t> tables{0, 0, 15, 1, 17, 0};
    std::vector<uint64_t> tree(kLong + 5);
    tree[kLong] = 0b0001;
    tree[kLong + 1] = 0b0011;
    tree[kLong + 2] = 0b0101;
    tree[kLong + 3] = 0b1101;
    hasten_step plan{};
    plan.num_tokens = kLong + 5;
    plan.num_rows = 3;
    plan.num_groups = 1;
    plan.token_ids = ids.data();
    plan.rows = rows.data();
    plan.tables = tables.data();
    plan.blocks = blocks.data();
    plan.tree = tree.data();
    Step step(pool);
    step.begin(plan, 1);
    for (int t = 0; t < kLong; ++t) CHECK(step.positions()[t] == 3 + t);
    constexpr int kPositions[] = {12, 13, 13, 14, 0}, kPlaces[] = {30 * 5 + 2, 30 * 5 + 3, 30 * 5 + 4, 39 * 5, 39 * 5};
    for (int t = 0; t < 5; ++t) {
        CHECK(step.positions()[kLong + t] == kPositions[t]);
        CHECK(step.slots(0)[kLong + t] == kPlaces[t]);
    }
    CHECK(step.spans(0)[0].tree == nullptr);
    CHECK(step.spans(0)[1].tree == tree.data() + kLong);
    CHECK(step.spans(0)[2].tree == nullptr);
    plan.tree = nullptr;
    step.begin(plan, 1);
    CHECK(step.spans(0)[1].tree == nullptr);
    for (int t = 0; t < 4; ++t) CHECK(step.positions()[kLong + t] == 12 + t);
}
