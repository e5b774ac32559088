// Attention over the pool against a plain loop in double, and bit by bit against itself cut in every other way.
#include "attention_problem.h"

using namespace check;

TEST(attention_of_random_batches) {
    for_each_isa([](const Kernels& kernels) {
        Random random(11);
        for (int round = 0; round < 60; ++round) {
            Problem problem(random_shape(random), random_rows(random, 100), random);
            check_against_reference(kernels, problem, random.integer(1, 4), random);
        }
    });
}

TEST(attention_over_several_splits) {
    for_each_isa([](const Kernels& kernels) {
        Random random(12);
        for (Dtype dtype : kDtypes) {
            for (int slots : kSlots) {
                Shape shape;
                shape.dtype = dtype;
                shape.slots = slots;
                shape.dim = 16;
                shape.window = slots == 48 ? 600 : 0;
                shape.sinks = slots == 5;
                Problem problem(shape, {{1100, 2}, {40, 3}, {1023, 1}, {511, 18}}, random);
                check_against_reference(kernels, problem, slots == 16 ? 1 : 8, random);
            }
        }
    });
}

// Many rows of few queries share items between kv heads: an item then goes from head to head.
TEST(attention_of_many_short_rows) {
    for_each_isa([](const Kernels& kernels) {
        Random random(15);
        for (int round = 0; round < 16; ++round) {
            Shape shape;
            shape.kv_heads = (round % 4 < 3 ? 4 : 6);
            shape.heads = shape.kv_heads * 2;
            shape.dim = 32;
            shape.dtype = kDtypes[round / 4];
            shape.slots = kSlots[round % 4];
            shape.window = round % 4 == 2 ? 40 : 0;
            std::vector<Row> rows;
            for (int r = 0; r < 24; ++r) rows.push_back({random.integer(0, 80), r == 7 ? 13 : random.integer(1, 3), false});
            Problem problem(shape, rows, random);
            Buffer<float> out(int64_t{problem.tokens} * shape.heads * shape.dim);
            const int stride = shape.heads * shape.dim;
            const Plan plan(kernels, problem.task(kernels, out.data(), stride, 1));
            CHECK(plan.plan.items < int64_t{shape.kv_heads} * 24);  // else nothing is shared, and this tests nothing new
            check_against_reference(kernels, problem, 1, random);
        }
    });
}

// Rows alone, with other threads, and prompts in chunks: the same bits, from every instruction set.
TEST(attention_is_invariant) {
    Random random(13);
    for (int round = 0; round < 24; ++round) {
        Shape shape = random_shape(random);
        shape.dtype = kDtypes[round % 4];
        shape.dim = std::min(shape.dim, 80);
        std::vector<Row> rows = random_rows(random, 90);
        rows.push_back({random.integer(500, 1200), random.integer(1, 5), false});
        Problem problem(shape, rows, random);
        const int stride = static_cast<int>(round_up(shape.heads * shape.dim, 16));
        Buffer<float> of_all(int64_t{problem.tokens} * stride), of_tiles(of_all.count());
        run(*isa(0), problem.task(*isa(0), of_all.data(), stride, 1), random);
        for_each_isa([&](const Kernels& kernels) {
            // In tiles bf16 has a form of its own, with as many queries as it takes.
            const bool tiles = shape.narrow && std::strcmp(kernels.name, "amx") == 0 && shape.dtype == Dtype::bf16;
            if (tiles) run(kernels, problem.task(kernels, of_tiles.data(), stride, 1), random);
            const Buffer<float>& want = tiles ? of_tiles : of_all;
            for (int threads : {1, 2, 32}) {
                Buffer<float> got(want.count());
                run(kernels, problem.task(kernels, got.data(), stride, threads), random);
                CHECK(got.same(want));
                Buffer<float> alone(want.count());
                AttentionTask task = problem.task(kernels, alone.data(), stride, threads);
                for (size_t r = 0; r < rows.size(); ++r) {
                    task.rows = problem.spans.data() + r;
                    task.num_rows = 1;
                    run(kernels, task, random);
                }
                CHECK(alone.same(want));
            }
            Buffer<float> chunked(want.count());
            AttentionTask task = problem.task(kernels, chunked.data(), stride, 2);
            for (size_t r = 0; r < rows.size(); ++r) {
                RowSpan piece = problem.spans[r];
                for (int begin = piece.begin, start = piece.start, end = piece.end; begin < end;) {
                    int tokens = rows[r].tree ? end - begin : random.integer(1, end - begin);
                    const bool of_row = in_bf16_tiles(kernels, shape, rows[r], rows[r].tokens);
                    if (tiles && (in_bf16_tiles(kernels, shape, rows[r], tokens) != of_row ||
                                  in_bf16_tiles(kernels, shape, rows[r], end - begin - tokens) != of_row))
                        tokens = end - begin;
                    piece.begin = begin;
                    piece.end = begin + tokens;
                    piece.start = start;
                    task.rows = &piece;
                    task.num_rows = 1;
                    run(kernels, task, random);
                    begin += tokens;
                    start += tokens;
                }
            }
            CHECK(chunked.same(want));
        });
    }
}

// A long decode step of one kv head is cut for many threads; a short one is not.
TEST(attention_is_cut_for_threads) {
    for_each_isa([](const Kernels& kernels) {
        Random random(14);
        Shape shape;
        shape.heads = 2;
        shape.kv_heads = 1;
        shape.dim = 16;
        Problem problem(shape, {{4000, 1}}, random);
        Buffer<float> out(32);
        const AttentionPlan cut = Plan(kernels, problem.task(kernels, out.data(), 32, 8)).plan;
        CHECK(cut.items == 8);
        CHECK(cut.merges == 1);
        Problem brief(shape, {{400, 1}}, random);
        const AttentionPlan whole = Plan(kernels, brief.task(kernels, out.data(), 32, 8)).plan;
        CHECK(whole.items == 1);
        CHECK(whole.merges == 0);
    });
}
