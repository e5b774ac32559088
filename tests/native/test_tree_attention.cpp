// Attention within draft trees: every token has the bits of its path as a plain sequence, in batches with other sequences.
#include "attention_problem.h"
#include "step.h"

using namespace check;

namespace {

// Draft trees among plain sequences, one of which is longer than a tree may be.
std::vector<Sequence> sequences_around_trees(Random& random) {
    std::vector<Sequence> sequences{{random.integer(0, 60), random.integer(2, 64), true},
                                    {random.integer(0, 40), random.integer(70, 90)}};
    sequences.push_back({random.integer(490, 520), random.integer(8, 40), true});  // near the end of a split
    for (int r = random.integer(0, 3); r > 0; --r) sequences.push_back({random.integer(0, 90), random.integer(1, 3)});
    for (size_t i = sequences.size(); i > 1; --i)
        std::swap(sequences[i - 1], sequences[static_cast<size_t>(random.integer(0, static_cast<int>(i) - 1))]);
    return sequences;
}

Shape random_tree_shape(Random& random, int round) {
    Shape shape = random_shape(random);
    shape.dtype = kDtypes[round % 4];
    shape.block_size = kBlockSizes[round / 4 % 4];
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
        const float *own = out.data() + int64_t{token} * stride, *others = other.out.data() + int64_t{other_token} * stride;
        return std::memcmp(own, others, static_cast<size_t>(stride) * sizeof(float)) == 0;
    }
    int stride;
    Buffer<float> out;
};

}  // namespace

TEST(tree_attention_matches_the_reference) {
    for_each_isa([](const Kernels& kernels) {
        Random random(21);
        for (int round = 0; round < 24; ++round) {
            Problem problem(random_tree_shape(random, round), sequences_around_trees(random), random);
            check_against_reference(kernels, problem, random.integer(1, 4), random);
        }
    });
}

TEST(tree_attention_has_the_bits_of_each_path) {
    Random random(22);
    for (int round = 0; round < 48; ++round) {
        Problem problem(random_tree_shape(random, round), sequences_around_trees(random), random);
        for_each_isa([&](const Kernels& kernels) {
            const Outcome outcome(kernels, problem, 1 << random.integer(0, 5), random);
            for (size_t r = 0; r < problem.sequences.size(); ++r) {
                if (!problem.sequences[r].tree) continue;
                for (int i = 0; i < 6; ++i) {
                    const int token = random.integer(0, problem.sequences[r].tokens - 1);
                    const std::vector<int> path = problem.path(r, token);
                    Problem plain(problem, r, token, random);
                    if (uses_bf16_tiles(kernels, plain.shape, plain.sequences[0], plain.sequences[0].tokens)) continue;
                    const Outcome separate(kernels, plain, 1 << random.integer(0, 5), random);
                    for (size_t j = 0; j < path.size(); ++j) {
                        CHECK(outcome.same(problem.spans[r].begin + path[j], separate, static_cast<int>(j)));
                    }
                }
            }
        });
    }
}

// Negative control: a token that attends to its parent's sibling instead of its parent must differ.
TEST(tree_attention_shows_a_wrong_mask_bit) {
    for_each_isa([](const Kernels& kernels) {
        Random random(23);
        for (Dtype dtype : kDtypes) {
            Shape shape;
            shape.dtype = dtype;
            Problem problem(shape, {{30, 4, true}}, random);
            problem.parents[0] = {-1, 0, 0, 1};
            problem.tree_masks[0] = {0b0001, 0b0011, 0b0101, 0b1011};
            const Outcome correct(kernels, problem, 1, random);
            problem.tree_masks[0][3] = 0b1101;
            const Outcome wrong(kernels, problem, 1, random);
            for (int token = 0; token < 3; ++token) CHECK(correct.same(token, wrong, token));
            CHECK(!correct.same(3, wrong, 3));
        }
    });
}

// The derived inputs of a step: tokens of a tree have consecutive slots and the positions of their paths.
TEST(step_inputs_of_draft_trees) {
    KvPool pool(40, 5);
    CHECK(pool.add_layer(0, Dtype::f32, 1, 16) == 0);
    constexpr int kLongTokens = 70;
    std::vector<int32_t> ids(kLongTokens + 5, 1);
    const std::vector<int32_t> sequences{0, kLongTokens, 3, kLongTokens, kLongTokens + 4, 12, kLongTokens + 4, kLongTokens + 5, 0};
    std::vector<int32_t> blocks;
    for (int b = 0; b < 15; ++b) blocks.push_back(b + 2);
    blocks.insert(blocks.end(), {31, 30, 39});  // of the second sequence: blocks 1 to 3
    const std::vector<int32_t> tables{0, 0, 15, 1, 17, 0};
    std::vector<uint64_t> tree(kLongTokens + 5);
    tree[kLongTokens] = 0b0001;
    tree[kLongTokens + 1] = 0b0011;
    tree[kLongTokens + 2] = 0b0101;
    tree[kLongTokens + 3] = 0b1101;
    hasten_step plan{};
    plan.num_tokens = kLongTokens + 5;
    plan.num_sequences = 3;
    plan.num_groups = 1;
    plan.num_block_ids = static_cast<int64_t>(blocks.size());
    plan.token_ids = ids.data();
    plan.sequences = sequences.data();
    plan.block_tables = tables.data();
    plan.block_ids = blocks.data();
    plan.tree_mask = tree.data();
    Step step(pool);
    CHECK(step.begin(plan, 1));
    for (int t = 0; t < kLongTokens; ++t) CHECK(step.positions()[t] == 3 + t);
    constexpr int kPositions[] = {12, 13, 13, 14, 0}, kSlotMapping[] = {30 * 5 + 2, 30 * 5 + 3, 30 * 5 + 4, 39 * 5, 39 * 5};
    for (int t = 0; t < 5; ++t) {
        CHECK(step.positions()[kLongTokens + t] == kPositions[t]);
        CHECK(step.slot_mapping(0)[kLongTokens + t] == kSlotMapping[t]);
    }
    CHECK(step.sequences(0)[0].tree_mask == nullptr);
    CHECK(step.sequences(0)[1].tree_mask == tree.data() + kLongTokens);
    CHECK(step.sequences(0)[2].tree_mask == nullptr);
    plan.tree_mask = nullptr;
    CHECK(step.begin(plan, 1));
    CHECK(step.sequences(0)[1].tree_mask == nullptr);
    for (int t = 0; t < 4; ++t) CHECK(step.positions()[kLongTokens + t] == 12 + t);
}
