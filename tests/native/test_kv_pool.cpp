// The pool moves and copies exactly the bytes documented in kernels.h, in the layers that it is told to and in no other layer.
#include "test_harness.h"
#include "kv_pool.h"

#include <algorithm>
#include <vector>

using namespace hasten;
using check::Random;

namespace {

struct Layer {
    int group;
    Dtype dtype;
    int heads, dim;
};

int element_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : dtype == Dtype::int8 ? 1 : 2; }
int key_pack(Dtype dtype) { return dtype == Dtype::int8 ? 4 : dtype == Dtype::bf16 ? 2 : 1; }

// The memory of one layer, and its expected contents.
class ExpectedLayer {
public:
    ExpectedLayer(const KvLayer& layer, int blocks, Random& random) : layer_(layer) {
        const int64_t num_slots = int64_t{blocks} * layer.kv_heads * panels() * 16;
        const int size = element_bytes(layer.dtype);
        add(layer.keys, num_slots * check::round_up(layer.head_dim, std::max(key_pack(layer.dtype), 2)) * size, random);
        add(layer.values, num_slots * check::round_up(layer.head_dim, 16) * size, random);
        if (layer.dtype != Dtype::int8) return;
        add(layer.key_scales, num_slots * 4, random);
        add(layer.value_scales, num_slots * 4, random);
    }

    void move(int from_block, int from_slot, int block, int slot) {
        const int pack = key_pack(layer_.dtype), size = element_bytes(layer_.dtype);
        const int64_t key_dim = check::round_up(layer_.head_dim, std::max(pack, 2)),
                      value_dim = check::round_up(layer_.head_dim, 16);
        for (int head = 0; head < layer_.kv_heads; ++head) {
            const int64_t from = panel(from_block, head, from_slot), to = panel(block, head, slot);
            for (int64_t d = 0; d < key_dim; ++d) {
                const auto offset = [&](int64_t at, int l) { return at * key_dim * 16 + (d / pack * 16 + l) * pack + d % pack; };
                copy(0, offset(from, from_slot % 16) * size, offset(to, slot % 16) * size, size);
            }
            const int64_t row = from * 16 + from_slot % 16, to_row = to * 16 + slot % 16;
            copy(1, row * value_dim * size, to_row * value_dim * size, value_dim * size);
            for (size_t scales = 2; scales < memory_.size(); ++scales) copy(scales, row * 4, to_row * 4, 4);
        }
    }

    // The bytes of one block: keys, values, scales of keys, scales of values.
    std::vector<uint8_t> block(int64_t index, int blocks) const {
        std::vector<uint8_t> bytes;
        for (const auto& part : expected_) {
            const auto size = static_cast<int64_t>(part.size()) / blocks;
            bytes.insert(bytes.end(), part.begin() + index * size, part.begin() + (index + 1) * size);
        }
        return bytes;
    }

    void replace_block(int64_t index, int blocks, const uint8_t* bytes) {
        for (auto& part : expected_) {
            const auto size = static_cast<int64_t>(part.size()) / blocks;
            std::copy(bytes, bytes + size, part.begin() + index * size);
            bytes += size;
        }
    }

    bool matches() const {
        for (size_t i = 0; i < memory_.size(); ++i) {
            if (std::memcmp(memory_[i], expected_[i].data(), expected_[i].size()) != 0) return false;
        }
        return true;
    }

private:
    int panels() const { return (layer_.block_size + 15) / 16; }
    int64_t panel(int block, int head, int slot) const { return (int64_t{block} * layer_.kv_heads + head) * panels() + slot / 16; }
    void add(void* memory, int64_t count, Random& random) {
        expected_.emplace_back();
        for (int64_t i = 0; i < count; ++i) expected_.back().push_back(static_cast<uint8_t>(random.bits()));
        std::memcpy(memory, expected_.back().data(), expected_.back().size());
        memory_.push_back(memory);
    }
    void copy(size_t i, int64_t from, int64_t to, int64_t count) {
        std::memmove(expected_[i].data() + to, expected_[i].data() + from, static_cast<size_t>(count));
    }

    const KvLayer& layer_;
    std::vector<void*> memory_;
    std::vector<std::vector<uint8_t>> expected_;
};

const Layer kLayers[] = {{0, Dtype::f32, 2, 5}, {1, Dtype::bf16, 1, 24}, {0, Dtype::int8, 3, 42},
                         {1, Dtype::f16, 2, 7}, {0, Dtype::bf16, 2, 64}, {1, Dtype::int8, 1, 16}};

}  // namespace

TEST(kv_pool_moves_tokens_between_slots) {
    Random random(31);
    for (int block_size : {1, 5, 16, 48}) {
        constexpr int kBlocks = 4;
        KvPool pool(kBlocks, block_size);
        for (const Layer& layer : kLayers) CHECK(pool.add_layer(layer.group, layer.dtype, layer.heads, layer.dim) >= 0);
        std::vector<ExpectedLayer> expected;
        for (int i = 0; i < 6; ++i) expected.emplace_back(pool.layer(i), kBlocks, random);
        for (int i = 0; i < 40; ++i) {
            const int group = random.integer(0, 1), from = random.integer(0, kBlocks - 1),
                      from_slot = random.integer(0, block_size - 1);
            const int to = random.integer(0, kBlocks - 1), slot = random.integer(0, block_size - 1);
            pool.move_token(group, {from, from_slot}, {to, slot});
            for (size_t layer = 0; layer < expected.size(); ++layer) {
                if (kLayers[layer].group == group) expected[layer].move(from, from_slot, to, slot);
                CHECK(expected[layer].matches());
            }
        }
    }
}

TEST(kv_pool_reads_and_writes_whole_blocks) {
    Random random(32);
    for (int block_size : {1, 5, 16, 48}) {
        constexpr int kBlocks = 5;
        KvPool pool(kBlocks, block_size);
        for (const Layer& layer : kLayers) CHECK(pool.add_layer(layer.group, layer.dtype, layer.heads, layer.dim) >= 0);
        std::vector<ExpectedLayer> expected;
        for (int i = 0; i < 6; ++i) expected.emplace_back(pool.layer(i), kBlocks, random);
        for (int32_t i = 0; i < 6; ++i) {
            const Layer& shape = kLayers[i];
            const auto size = static_cast<size_t>(kv_block_size(shape.dtype, shape.heads, shape.dim, block_size).total());
            ExpectedLayer& layer = expected[static_cast<size_t>(i)];
            const int64_t blocks[] = {3, 0, 4};
            std::vector<uint8_t> bytes(3 * size);
            pool.read_blocks(i, blocks, 3, bytes.data());
            for (size_t j = 0; j < 3; ++j) {
                const std::vector<uint8_t> block = layer.block(blocks[j], kBlocks);
                CHECK(block.size() == size);
                CHECK(std::equal(block.begin(), block.end(), bytes.begin() + static_cast<int64_t>(j * size)));
            }
            const int64_t targets[] = {1, 4, 2};
            for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.bits());
            pool.write_blocks(i, targets, 3, bytes.data());
            for (size_t j = 0; j < 3; ++j) layer.replace_block(targets[j], kBlocks, bytes.data() + j * size);
            for (const ExpectedLayer& each : expected) CHECK(each.matches());
        }
    }
}

TEST(kv_pool_copies_blocks_in_the_layers_of_a_group) {
    Random random(33);
    constexpr int kBlocks = 4;
    KvPool pool(kBlocks, 5);
    for (const Layer& layer : kLayers) CHECK(pool.add_layer(layer.group, layer.dtype, layer.heads, layer.dim) >= 0);
    std::vector<ExpectedLayer> expected;
    for (int i = 0; i < 6; ++i) expected.emplace_back(pool.layer(i), kBlocks, random);
    const int copies[][3] = {{0, 3, 1}, {1, 0, 2}, {0, 1, 1}, {1, 2, 0}};
    for (const auto& [group, source, target] : copies) {
        pool.copy_block(group, source, target);
        for (size_t i = 0; i < expected.size(); ++i) {
            if (kLayers[i].group == group) expected[i].replace_block(target, kBlocks, expected[i].block(source, kBlocks).data());
            CHECK(expected[i].matches());
        }
    }
}
