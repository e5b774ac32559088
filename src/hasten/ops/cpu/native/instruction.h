// What a program is made of. An instruction is recorded once and run in every step, item by item, by all threads.
#pragma once

#include <vector>

#include "attention_cuts.h"
#include "matrix.h"
#include "step.h"

namespace hasten {

struct Worker {
    int thread;
    void* scratch;  // kLinearScratch or kAttentionScratch bytes, whichever is more
};

class Instruction {
public:
    virtual ~Instruction() = default;
    // How many items there are in this step; every thread asks and gets the same answer.
    virtual int64_t items(const Step& step) const = 0;
    virtual void run(const Step& step, int64_t item, const Worker& worker) const = 0;
};

// Whether an instruction runs on the tokens of the step or on the rows whose logits are wanted.
enum class Extent { tokens, logits };

// Instructions over rows: runs of rows are items. Small steps stay whole, since an item costs about as much as a row.
struct RowItems {
    int32_t rows, each;
    int64_t count() const { return (rows + each - 1) / each; }
    int32_t begin(int64_t item) const { return static_cast<int32_t>(item) * each; }
    int32_t end(int64_t item) const { return begin(item) + each < rows ? begin(item) + each : rows; }
};
RowItems cut_rows(const Step& step, Extent extent);

class Norm final : public Instruction {
public:
    Norm(const Kernels& kernels, Extent extent, const NormTask& task) : kernels_(kernels), extent_(extent), task_(task) {}
    int64_t items(const Step& step) const override { return cut_rows(step, extent_).count(); }
    void run(const Step& step, int64_t item, const Worker&) const override;

private:
    const Kernels& kernels_;
    Extent extent_;
    NormTask task_;
};

// So few rows that products stream are not narrowed.
class Narrow final : public Instruction {
public:
    Narrow(const Kernels& kernels, Extent extent, const NarrowTask& task) : kernels_(kernels), extent_(extent), task_(task) {}
    int64_t items(const Step& step) const override {
        const RowItems items = cut_rows(step, extent_);
        return items.rows > kVectorRows ? items.count() : 0;
    }
    void run(const Step& step, int64_t item, const Worker&) const override;

private:
    const Kernels& kernels_;
    Extent extent_;
    NarrowTask task_;
};

class Activate final : public Instruction {
public:
    Activate(const Kernels& kernels, Extent extent, const ActivateTask& task) : kernels_(kernels), extent_(extent), task_(task) {}
    int64_t items(const Step& step) const override { return cut_rows(step, extent_).count(); }
    void run(const Step& step, int64_t item, const Worker& worker) const override;

private:
    const Kernels& kernels_;
    Extent extent_;
    ActivateTask task_;
};

class Linear final : public Instruction {
public:
    // Writes the logits of the step where task.out.data is null.
    Linear(const Kernels& kernels, Extent extent, const LinearTask& task) : kernels_(kernels), extent_(extent), task_(task) {}
    int64_t items(const Step& step) const override { return cut(kernels_, whole(step), step.threads()).count(); }
    void run(const Step& step, int64_t item, const Worker& worker) const override;

private:
    LinearTask whole(const Step& step) const;

    const Kernels& kernels_;
    Extent extent_;
    LinearTask task_;
};

// Only in steps that begin with layer 0. by_position: learned positions are added to what is there.
class Embed final : public Instruction {
public:
    Embed(const Kernels& kernels, const Matrix& matrix, bool by_position, Rows out)
        : kernels_(kernels), matrix_(matrix), by_position_(by_position), out_(out) {}
    int64_t items(const Step& step) const override;
    void run(const Step& step, int64_t item, const Worker&) const override;

private:
    const Kernels& kernels_;
    const Matrix& matrix_;
    bool by_position_;
    Rows out_;
};

class Rotary final : public Instruction {
public:
    Rotary(const Kernels& kernels, const RotaryTask& task) : kernels_(kernels), task_(task) {}
    int64_t items(const Step& step) const override { return cut_rows(step, Extent::tokens).count(); }
    void run(const Step& step, int64_t item, const Worker&) const override;

private:
    const Kernels& kernels_;
    RotaryTask task_;
};

class Prepare final : public Instruction {
public:
    Prepare(const Kernels& kernels, int32_t group, const PrepareTask& task) : kernels_(kernels), group_(group), task_(task) {}
    int64_t items(const Step& step) const override { return cut_rows(step, Extent::tokens).count(); }
    void run(const Step& step, int64_t item, const Worker&) const override;

private:
    const Kernels& kernels_;
    int32_t group_;
    PrepareTask task_;
};

// Phase one of attention when `merge` is false, phase two when it is true.
class Attend final : public Instruction {
public:
    Attend(const Kernels& kernels, int32_t group, const AttentionTask& task, const AttentionCuts& cuts, bool merge)
        : kernels_(kernels), group_(group), task_(task), cuts_(cuts), merge_(merge) {}
    int64_t items(const Step&) const override { return merge_ ? cuts_.plan().merges : cuts_.plan().items; }
    void run(const Step& step, int64_t item, const Worker& worker) const override;

private:
    const Kernels& kernels_;
    int32_t group_;
    AttentionTask task_;
    const AttentionCuts& cuts_;
    bool merge_;
};

class Gather final : public Instruction {
public:
    Gather(Rows x, int32_t width, Rows out) : x_(x), width_(width), out_(out) {}
    int64_t items(const Step& step) const override { return cut_rows(step, Extent::logits).count(); }
    void run(const Step& step, int64_t item, const Worker&) const override;

private:
    Rows x_;
    int32_t width_;
    Rows out_;
};

}  // namespace hasten
