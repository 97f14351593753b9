/* Stands between a program and libtorch, and counts what would be launched on a card.
 *
 * KERNEL_COUNT   file that the counts go to at the end, a line `SEGMENT NAME COUNT` for each
 *
 * An operator counts if it computes, and what it is made of does not: views and allocations launch nothing, and of a composite
 * the innermost operators count. A few that are one kernel on a card and several here count as one. The operator
 * `aten::lgamma`, which no network has, ends a segment.
 */
#include <ATen/record_function.h>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

using Counts = std::map<std::pair<long, std::string>, long>;

const std::set<std::string> free_of_work = {
    "alias", "as_strided", "contiguous", "data", "detach", "detach_", "empty", "empty_like", "empty_strided", "expand",
    "expand_as", "lift_fresh", "narrow", "new_empty", "new_empty_strided", "permute", "positive", "requires_grad_",
    "reshape", "_reshape_alias", "resize_", "resolve_conj", "resolve_neg", "select", "set_data", "slice", "split",
    "split_with_sizes", "squeeze", "squeeze_", "t", "to", "_to_copy", "transpose", "unbind", "unflatten", "_unsafe_view",
    "unsqueeze", "unsqueeze_", "view", "view_as", "view_as_complex", "view_as_real", "chunk", "flatten", "result_type",
    "numel", "atleast_1d", "is_same_size", "zeros_like", "ones_like", "zeros", "ones", "new_zeros", "new_ones", "full",
    "unfold", "numpy_T", "mT", "tensor_split", "size", "stride", "is_nonzero", "item"};

const std::set<std::string> one_kernel = {
    "_fused_rms_norm", "native_layer_norm", "native_group_norm", "scaled_dot_product_attention", "convolution", "gelu", "silu",
    "addmm", "addmm_", "mm", "bmm", "baddbmm"};

struct Frame : at::ObserverContext {
    std::string name;
    bool computes_inside = false;
};

std::mutex lock;
Counts counts;
long segment = 0;
thread_local std::vector<Frame*> open_frames;
thread_local int inside_one_kernel = 0;

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function) {
    auto frame = std::make_unique<Frame>();
    std::string name = function.name();
    frame->name = name.rfind("aten::", 0) == 0 ? name.substr(6) : name;
    open_frames.push_back(frame.get());
    inside_one_kernel += one_kernel.count(frame->name);
    return frame;
}

void leave(const at::RecordFunction&, at::ObserverContext* context) {
    auto* frame = static_cast<Frame*>(context);
    open_frames.pop_back();
    bool is_one = one_kernel.count(frame->name) > 0;
    inside_one_kernel -= is_one;
    if (inside_one_kernel > 0) return;
    bool computes = is_one || (!frame->computes_inside && free_of_work.count(frame->name) == 0);
    if (computes || frame->computes_inside)
        for (auto* outer : open_frames) outer->computes_inside = true;
    if (!computes) return;
    std::lock_guard<std::mutex> guard(lock);
    if (frame->name == "lgamma") ++segment;
    else ++counts[{segment, frame->name}];
}

struct Counter {
    Counter() {
        if (!std::getenv("KERNEL_COUNT")) return;
        at::addGlobalCallback(at::RecordFunctionCallback(enter, leave).scopes({at::RecordScope::FUNCTION}));
    }
    ~Counter() {
        const char* path = std::getenv("KERNEL_COUNT");
        FILE* file = path ? std::fopen(path, "w") : nullptr;
        if (!file) return;
        for (auto& [key, count] : counts) std::fprintf(file, "%ld %s %ld\n", key.first, key.second.c_str(), count);
        std::fclose(file);
    }
} counter;

}  // namespace
