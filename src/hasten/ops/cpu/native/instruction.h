// The instructions of a program. An instruction is recorded once; in every step all threads run its work items.
#pragma once

#include <utility>
#include <vector>

#include "attention_planner.h"
#include "matrix.h"
#include "step.h"

namespace hasten {

class Instruction {
public:
    virtual ~Instruction() = default;
    // The number of work items in this step, the same for every thread.
    virtual int64_t items(const Step& step) const = 0;
    // scratch: max(kLinearScratch, kAttentionScratch) bytes of this thread.
    virtual void run(const Step& step, int64_t item, void* scratch) const = 0;
};

// Work partition of row-wise instructions: an item is a run of at most 16 rows, with about four items for each thread.
struct RowPartition {
    int32_t rows, rows_per_item;
    int64_t count() const { return (rows + rows_per_item - 1) / rows_per_item; }
    int32_t begin(int64_t item) const { return static_cast<int32_t>(item) * rows_per_item; }
    int32_t end(int64_t item) const { return begin(item) + rows_per_item < rows ? begin(item) + rows_per_item : rows; }
};
RowPartition partition_rows(const Step& step, RowScope scope);

// Whether the step embeds its tokens. The others begin with a hidden state.
inline bool embeds(const Step& step) { return step.arguments().first_layer == 0; }

class Norm final : public Instruction {
public:
    Norm(const Kernels& kernels, RowScope scope, const NormTask& task) : kernels_(kernels), scope_(scope), task_(task) {}
    int64_t items(const Step& step) const override { return partition_rows(step, scope_).count(); }
    void run(const Step& step, int64_t item, void*) const override;

private:
    const Kernels& kernels_;
    RowScope scope_;
    NormTask task_;
};

// Steps of at most kMaxVectorRows rows are not converted, since their products read float rows.
class ConvertToBf16 final : public Instruction {
public:
    ConvertToBf16(const Kernels& kernels, RowScope scope, const ConvertToBf16Task& task)
        : kernels_(kernels), scope_(scope), task_(task) {}
    int64_t items(const Step& step) const override {
        const RowPartition items = partition_rows(step, scope_);
        return items.rows > kMaxVectorRows ? items.count() : 0;
    }
    void run(const Step& step, int64_t item, void*) const override;

private:
    const Kernels& kernels_;
    RowScope scope_;
    ConvertToBf16Task task_;
};

class ConvertToInt16 final : public Instruction {
public:
    ConvertToInt16(const Kernels& kernels, RowScope scope, const ConvertToInt16Task& task)
        : kernels_(kernels), scope_(scope), task_(task) {}
    int64_t items(const Step& step) const override { return partition_rows(step, scope_).count(); }
    void run(const Step& step, int64_t item, void*) const override;

private:
    const Kernels& kernels_;
    RowScope scope_;
    ConvertToInt16Task task_;
};

class Activate final : public Instruction {
public:
    Activate(const Kernels& kernels, RowScope scope, const ActivateTask& task) : kernels_(kernels), scope_(scope), task_(task) {}
    int64_t items(const Step& step) const override { return partition_rows(step, scope_).count(); }
    void run(const Step& step, int64_t item, void* scratch) const override;

private:
    const Kernels& kernels_;
    RowScope scope_;
    ActivateTask task_;
};

class Linear final : public Instruction {
public:
    // Writes the logits of the step if task.out.data is null.
    Linear(const Kernels& kernels, RowScope scope, const LinearTask& task) : kernels_(kernels), scope_(scope), task_(task) {}
    int64_t items(const Step& step) const override { return partition_linear(kernels_, bound_task(step), step.threads()).count(); }
    void run(const Step& step, int64_t item, void* scratch) const override;

private:
    LinearTask bound_task(const Step& step) const;

    const Kernels& kernels_;
    RowScope scope_;
    LinearTask task_;
};

// Runs only in steps that start at layer 0. by_position: adds learned position embeddings.
class Embed final : public Instruction {
public:
    Embed(const Kernels& kernels, const Matrix& matrix, bool by_position, Rows out)
        : kernels_(kernels), matrix_(matrix), by_position_(by_position), out_(out) {}
    int64_t items(const Step& step) const override;
    void run(const Step& step, int64_t item, void*) const override;

private:
    const Kernels& kernels_;
    const Matrix& matrix_;
    bool by_position_;
    Rows out_;
};

class RotaryTable final : public Instruction {
public:
    RotaryTable(const Kernels& kernels, const RotaryTableTask& task) : kernels_(kernels), task_(task) {}
    int64_t items(const Step& step) const override { return partition_rows(step, RowScope::tokens).count(); }
    void run(const Step& step, int64_t item, void*) const override;

private:
    const Kernels& kernels_;
    RotaryTableTask task_;
};

class RopeAndCache final : public Instruction {
public:
    RopeAndCache(const Kernels& kernels, int32_t group, const RopeAndCacheTask& task)
        : kernels_(kernels), group_(group), task_(task) {}
    int64_t items(const Step& step) const override { return partition_rows(step, RowScope::tokens).count(); }
    void run(const Step& step, int64_t item, void*) const override;

private:
    const Kernels& kernels_;
    int32_t group_;
    RopeAndCacheTask task_;
};

// Phase one of attention, or the merge of its splits.
class Attend final : public Instruction {
public:
    Attend(const Kernels& kernels, int32_t group, const AttentionTask& task, const AttentionPlanner& planner, bool merge)
        : kernels_(kernels), group_(group), task_(task), planner_(planner), merge_(merge) {}
    int64_t items(const Step&) const override { return merge_ ? planner_.plan().merges : planner_.plan().items; }
    void run(const Step& step, int64_t item, void* scratch) const override;

private:
    const Kernels& kernels_;
    int32_t group_;
    AttentionTask task_;
    const AttentionPlanner& planner_;
    bool merge_;
};

class Gather final : public Instruction {
public:
    Gather(Rows x, int32_t width, Rows out) : x_(x), width_(width), out_(out) {}
    int64_t items(const Step& step) const override { return partition_rows(step, RowScope::logits).count(); }
    void run(const Step& step, int64_t item, void*) const override;

private:
    Rows x_;
    int32_t width_;
    Rows out_;
};

// out[t][i] = x[t][columns[i]]. of_embeddings: only in steps that embed their tokens.
class SelectColumns final : public Instruction {
public:
    SelectColumns(RowScope scope, bool of_embeddings, Rows x, std::vector<int32_t> columns, Rows out)
        : scope_(scope), of_embeddings_(of_embeddings), x_(x), columns_(std::move(columns)), out_(out) {}
    int64_t items(const Step& step) const override {
        return of_embeddings_ && !embeds(step) ? 0 : partition_rows(step, scope_).count();
    }
    void run(const Step& step, int64_t item, void*) const override;

private:
    RowScope scope_;
    bool of_embeddings_;
    Rows x_;
    std::vector<int32_t> columns_;
    Rows out_;
};

}  // namespace hasten
