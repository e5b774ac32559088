// Paged attention against a plain loop in double, and bit by bit against itself under other work partitions.
#include <cstdlib>

#include "attention_problem.h"

using namespace check;

TEST(attention_matches_the_reference) {
    for_each_isa([](const Kernels& kernels) {
        Random random(11);
        for (int round = 0; round < 60; ++round) {
            Problem problem(random_shape(random), random_sequences(random, 100), random);
            check_against_reference(kernels, problem, random.integer(1, 4), random);
        }
    });
}

TEST(attention_over_several_splits) {
    for_each_isa([](const Kernels& kernels) {
        Random random(12);
        for (Dtype dtype : kDtypes) {
            for (int block_size : kBlockSizes) {
                Shape shape;
                shape.dtype = dtype;
                shape.block_size = block_size;
                shape.dim = 16;
                shape.window = block_size == 48 ? 600 : 0;
                shape.sinks = block_size == 5;
                Problem problem(shape, {{1100, 2}, {40, 3}, {1023, 1}, {511, 18}}, random);
                check_against_reference(kernels, problem, block_size == 16 ? 1 : 8, random);
            }
        }
    });
}

// In steps of many short sequences a work item covers several KV heads.
TEST(attention_of_many_short_sequences) {
    for_each_isa([](const Kernels& kernels) {
        Random random(15);
        for (int round = 0; round < 16; ++round) {
            Shape shape;
            shape.kv_heads = (round % 4 < 3 ? 4 : 6);
            shape.heads = shape.kv_heads * 2;
            shape.dim = 32;
            shape.dtype = kDtypes[round / 4];
            shape.block_size = kBlockSizes[round % 4];
            shape.window = round % 4 == 2 ? 40 : 0;
            std::vector<Sequence> sequences;
            for (int r = 0; r < 24; ++r) sequences.push_back({random.integer(0, 80), r == 7 ? 13 : random.integer(1, 3), false});
            Problem problem(shape, sequences, random);
            Buffer<float> out(int64_t{problem.tokens} * shape.heads * shape.dim);
            const int stride = shape.heads * shape.dim;
            const Plan plan(kernels, problem.task(kernels, out.data(), stride, 1));
            CHECK(plan.plan.items < int64_t{shape.kv_heads} * 24);  // else no item covers several heads, and the test is void
            check_against_reference(kernels, problem, 1, random);
        }
    });
}

// Batch invariance: the same bits for single sequences, other numbers of threads and chunked prompts, on every instruction set.
TEST(attention_is_batch_invariant) {
    Random random(13);
    for (int round = 0; round < 24; ++round) {
        Shape shape = random_shape(random);
        shape.dtype = kDtypes[round % 4];
        shape.dim = std::min(shape.dim, 80);
        std::vector<Sequence> sequences = random_sequences(random, 90);
        sequences.push_back({random.integer(500, 1200), random.integer(1, 5), false});
        Problem problem(shape, sequences, random);
        const int stride = static_cast<int>(round_up(shape.heads * shape.dim, 16));
        Buffer<float> full_output(int64_t{problem.tokens} * stride), tile_output(full_output.count());
        run(*isa(0), problem.task(*isa(0), full_output.data(), stride, 1), random);
        for_each_isa([&](const Kernels& kernels) {
            // bf16 in tiles has a form of its own, which depends on the number of queries.
            const bool tiles = shape.allow_bf16 && std::strcmp(kernels.name, "amx") == 0 && shape.dtype == Dtype::bf16;
            if (tiles) run(kernels, problem.task(kernels, tile_output.data(), stride, 1), random);
            const Buffer<float>& expected = tiles ? tile_output : full_output;
            for (int threads : {1, 2, 32}) {
                Buffer<float> actual(expected.count());
                run(kernels, problem.task(kernels, actual.data(), stride, threads), random);
                CHECK(actual.same(expected));
                Buffer<float> separate(expected.count());
                AttentionTask task = problem.task(kernels, separate.data(), stride, threads);
                for (size_t r = 0; r < sequences.size(); ++r) {
                    task.sequences = problem.spans.data() + r;
                    task.num_sequences = 1;
                    run(kernels, task, random);
                }
                CHECK(separate.same(expected));
            }
            Buffer<float> chunk_output(expected.count());
            AttentionTask task = problem.task(kernels, chunk_output.data(), stride, 2);
            for (size_t r = 0; r < sequences.size(); ++r) {
                SequenceSpan chunk = problem.spans[r];
                for (int begin = chunk.begin, start = chunk.start, end = chunk.end; begin < end;) {
                    int tokens = sequences[r].tree ? end - begin : random.integer(1, end - begin);
                    const bool sequence_uses_tiles = uses_bf16_tiles(kernels, shape, sequences[r], sequences[r].tokens);
                    if (tiles && (uses_bf16_tiles(kernels, shape, sequences[r], tokens) != sequence_uses_tiles ||
                                  uses_bf16_tiles(kernels, shape, sequences[r], end - begin - tokens) != sequence_uses_tiles))
                        tokens = end - begin;
                    chunk.begin = begin;
                    chunk.end = begin + tokens;
                    chunk.start = start;
                    task.sequences = &chunk;
                    task.num_sequences = 1;
                    run(kernels, task, random);
                    begin += tokens;
                    start += tokens;
                }
            }
            CHECK(chunk_output.same(expected));
        });
    }
}

// Split-KV: a long decode step of one KV head is divided among the threads, a short one is not.
TEST(attention_splits_long_contexts_among_threads) {
    for_each_isa([](const Kernels& kernels) {
        Random random(14);
        Shape shape;
        shape.heads = 2;
        shape.kv_heads = 1;
        shape.dim = 16;
        Problem problem(shape, {{4000, 1}}, random);
        Buffer<float> out(32);
        const AttentionPlan long_plan = Plan(kernels, problem.task(kernels, out.data(), 32, 8)).plan;
        CHECK(long_plan.items == 8);
        CHECK(long_plan.merges == 1);
        Problem short_problem(shape, {{400, 1}}, random);
        const AttentionPlan short_plan = Plan(kernels, short_problem.task(kernels, out.data(), 32, 8)).plan;
        CHECK(short_plan.items == 1);
        CHECK(short_plan.merges == 0);
    });
}

// Every head size up to the limit, odd ones too, with one head or many, in every type and form. HASTEN_EXHAUSTIVE=1: all of them.
TEST(attention_shape_fuzz) {
    const bool exhaustive = std::getenv("HASTEN_EXHAUSTIVE") != nullptr;
    constexpr int kMost = static_cast<int>(kMaxHeadDim);
    std::vector<int> dims{1, 3, 15, 17, 33, 255, 257, kMost - 1, kMost};
    Random random(16);
    for (int i = 0; i < 20; ++i) dims.push_back(random.integer(1, kMost));
    for (int dim = 1; dim <= kMost && exhaustive; ++dim) dims.push_back(dim);
    for (const int dim : dims) {
        for (const Dtype dtype : kDtypes) {
            Shape shape = random_shape(random);
            shape.dim = dim;
            shape.dtype = dtype;
            if (random.coin()) shape.heads = shape.kv_heads = 1;
            std::vector<Sequence> sequences{{random.integer(0, 40), 1}, {random.integer(0, 20), random.integer(2, 12)}};
            sequences[1].tree = random.coin();
            Problem problem(shape, sequences, random);
            for_each_isa([&](const Kernels& kernels) { check_against_reference(kernels, problem, random.integer(1, 4), random); });
        }
    }
}
