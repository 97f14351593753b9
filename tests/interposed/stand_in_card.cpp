// A stand-in for a GPU: put before a program that is linked with libtorch's CPU half, it makes `cuda:0` a device of its
// own, whose tensors lie in host memory and are computed by the CPU's kernels, so that results are the CPU's bit for bit.
// What it shares with a real card is what it refuses: tensors of different devices do not meet, except where CUDA lets
// them (a number without dimensions in pointwise operations, indices, copies). A program that walks through unharmed has
// made each tensor where it is used. It shows nothing of CUDA's kernels: not their rounding, the element types that they
// lack, their streams or their memory.
//
// How: a card's tensor is a plain `TensorImpl` with the dispatch key CUDA over a storage that says `cuda:0`. Each operation
// for which the CPU has a kernel gets, for CUDA, a boxed kernel that lends the operands to the CPU, calls its kernel, and
// gives the outcomes back. Everything else (views, autograd, composite operations) is libtorch's own and is dispatched as
// on a card.
//
// STAND_IN_CARD_FAILS_AT   number of the allocation, from 1, that finds the card full,
// STAND_IN_CARD_FAILS_FROM among those of at least so many bytes, 1 if not given,
// STAND_IN_CARD_FAILS_IN   in each process of this program, all if not given
// STAND_IN_CARD_COUNTS     file that gets a line from each process at its exit: `PROGRAM waits N uploads N allocations N`.
//                          A wait is where the host needs a value of the card: a copy, a scalar, a shape made of values.
//
// Build: c++ -std=c++17 -shared -fPIC -I include -I include/torch/csrc/api/include ... -ltorch_cpu -lc10
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::OperatorHandle;
using torch::jit::Stack;

const c10::Device CARD(c10::kCUDA, 0);
const c10::Device HOST(c10::kCPU);

// ---------------------------------------------------------------------------------------------------------------------
// What is counted

std::atomic<long> n_waits, n_uploads, n_allocations, n_large_allocations;

long number(const char* variable, long otherwise) {
    const char* value = std::getenv(variable);
    return value ? std::atol(value) : otherwise;
}

void write_counts() {
    const char* path = std::getenv("STAND_IN_CARD_COUNTS");
    if (!path || n_allocations == 0) return;
    if (FILE* file = std::fopen(path, "a")) {
        std::fprintf(file, "%s waits %ld uploads %ld allocations %ld\n", program_invocation_short_name, n_waits.load(),
                     n_uploads.load(), n_allocations.load());
        std::fclose(file);
    }
}

const bool COUNTS_ARE_WRITTEN = std::atexit(&write_counts) == 0;

// Operations whose outcome the host must know before it goes on.
const std::set<std::string> WAITING = {"_local_scalar_dense", "equal",   "is_nonzero", "masked_select",
                                       "nonzero",             "_unique", "_unique2",   "unique_consecutive"};

void count_allocation(size_t n_bytes) {
    static const long fails_at = number("STAND_IN_CARD_FAILS_AT", 0);
    static const size_t fails_from = number("STAND_IN_CARD_FAILS_FROM", 1);
    n_allocations++;
    static const char* fails_in = std::getenv("STAND_IN_CARD_FAILS_IN");
    static const bool may_fail = !fails_in || std::strcmp(fails_in, program_invocation_short_name) == 0;
    if (!may_fail || n_bytes < fails_from || ++n_large_allocations != fails_at) return;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", n_bytes,
                     " bytes. GPU 0 is a stand-in that was told to be full.");
}

// ---------------------------------------------------------------------------------------------------------------------
// Storages and tensors of the card

// A storage that says `cuda:0` over the memory of one of the host, which it keeps.
c10::Storage card_storage(const c10::Storage& host) {
    count_allocation(host.nbytes());
    auto* kept = new c10::Storage(host);
    auto release = [](void* storage) { delete static_cast<c10::Storage*>(storage); };
    c10::DataPtr data(kept->mutable_data(), kept, release, CARD);
    return c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), host.nbytes(),
                                                              std::move(data), nullptr, false));
}

// A storage that says `cpu` over the memory of one of the card, for as long as that one is kept.
c10::Storage lent_storage(const c10::Storage& card) {
    c10::DataPtr data(card.mutable_data(), HOST);
    return c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), card.nbytes(),
                                                              std::move(data), c10::GetCPUAllocator(), true));
}

at::Tensor over(const c10::Storage& storage, DispatchKey key, const at::Tensor& like) {
    auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), DispatchKeySet(key), like.dtype());
    auto* implementation = tensor.unsafeGetTensorImpl();
    implementation->set_storage_offset(like.storage_offset());
    implementation->set_sizes_and_strides(like.sizes(), like.strides());
    // Bits that say that the values are yet to be conjugated or negated.
    if (like.is_conj()) implementation->_set_conj(true);
    if (like.is_neg()) implementation->_set_neg(true);
    return tensor;
}

// What an operation of the card borrows from it: tensors for the CPU's kernels, and their way back.
class Loan {
public:
    at::Tensor to_host(const at::Tensor& card) {
        if (!card.defined() || !card.is_cuda()) return card;
        for (const auto& [theirs, ours] : tensors_)
            if (theirs.is_same(card)) return ours;
        TORCH_CHECK(card.layout() == at::kStrided, "the stand-in card has dense tensors alone");
        at::Tensor host = over(lent(card.storage()), DispatchKey::CPU, card);
        if (card.unsafeGetTensorImpl()->is_wrapped_number()) host.unsafeGetTensorImpl()->set_wrapped_number(true);
        tensors_.emplace_back(card, host);
        return host;
    }

    // The tensor of the card that an outcome is: an operand itself, a view of one, or a new one.
    at::Tensor to_card(const at::Tensor& host) {
        if (!host.defined()) return host;
        for (const auto& [theirs, ours] : tensors_)
            if (ours.is_same(host)) return theirs;
        TORCH_CHECK(host.layout() == at::kStrided, "the stand-in card has dense tensors alone");
        return over(returned(host.storage()), DispatchKey::CUDA, host);
    }

    // Carries over what the operation did to its operands besides their values: other shapes, other memory.
    void settle() {
        for (auto& [card, host] : tensors_) {
            auto* implementation = card.unsafeGetTensorImpl();
            if (!host.storage().is_alias_of(lent(card.storage())))
                implementation->set_storage_keep_dtype(returned(host.storage()));
            else if (host.storage().data() != card.storage().data())
                replace_memory(card.storage(), host.storage());
            if (card.sizes() == host.sizes() && card.strides() == host.strides() &&
                card.storage_offset() == host.storage_offset())
                continue;
            implementation->set_storage_offset(host.storage_offset());
            implementation->set_sizes_and_strides(host.sizes(), host.strides());
        }
    }

private:
    const c10::Storage& lent(const c10::Storage& card) {
        for (const auto& [theirs, ours] : storages_)
            if (theirs.is_alias_of(card)) return ours;
        storages_.emplace_back(card, lent_storage(card));
        return storages_.back().second;
    }

    const c10::Storage& returned(const c10::Storage& host) {
        for (const auto& [theirs, ours] : storages_)
            if (ours.is_alias_of(host)) return theirs;
        storages_.emplace_back(card_storage(host), host);
        return storages_.back().first;
    }

    static void replace_memory(const c10::Storage& card, const c10::Storage& host) {
        auto* storage = card.unsafeGetStorageImpl();
        storage->set_nbytes(host.nbytes());
        storage->set_data_ptr_noswap(card_storage(host).set_data_ptr(c10::DataPtr(nullptr, CARD)));
    }

    std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
    std::vector<std::pair<c10::Storage, c10::Storage>> storages_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Which tensors of the host an operation of the card takes

// Pointwise operations that take one number without dimensions from the host.
const std::set<std::string> TAKES_NUMBER = {
    "add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "pow", "fmod", "remainder", "atan2", "hypot",
    "maximum", "minimum", "fmax", "fmin", "eq", "ne", "lt", "le", "gt", "ge", "where", "lerp", "masked_fill", "fill",
    "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "copysign", "xlogy",
    "index_put", "_index_put_impl"};
// Operations that take their indices, the list among their arguments, from the host.
const std::set<std::string> TAKES_INDICES = {"index", "index_put", "_index_put_impl", "_unsafe_index",
                                             "_unsafe_index_put"};

// `add_.Tensor` of `aten` is `add`.
std::string plain_name(const OperatorHandle& operation) {
    std::string name = operation.schema().name();
    name = name.substr(name.find("::") + 2);
    if (name.size() > 1 && name.back() == '_') name.pop_back();
    return name;
}

void refuse_hosts_tensor(const OperatorHandle& operation, const std::string& argument) {
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but got ", argument,
                " is on cpu, different from other tensors on cuda:0 (when checking argument in method wrapper_CUDA_",
                plain_name(operation), ")");
}

bool meets_card(const IValue& value) {
    if (value.isTensor()) return value.toTensor().defined() && value.toTensor().is_cuda();
    if (value.isTensorList()) {
        for (const at::Tensor& tensor : value.toTensorVector())
            if (tensor.is_cuda()) return true;
    } else if (value.isOptionalTensorList()) {
        for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
            if (tensor && tensor->defined() && tensor->is_cuda()) return true;
    }
    return false;
}

bool is_of_host(const at::Tensor& tensor) {
    return tensor.defined() && tensor.is_cpu() && !tensor.unsafeGetTensorImpl()->is_wrapped_number();
}

void check_devices(const OperatorHandle& operation, c10::ArrayRef<IValue> arguments) {
    bool any = false;
    for (const IValue& value : arguments) any = any || meets_card(value);
    if (!any) return;
    const std::string name = plain_name(operation);
    int n_numbers = TAKES_NUMBER.count(name) ? 1 : 0;
    for (size_t i = 0; i < arguments.size(); i++) {
        const auto& argument = operation.schema().arguments()[i];
        const bool is_written = argument.alias_info() && argument.alias_info()->isWrite();
        const auto check = [&](const at::Tensor& tensor) {
            if (!is_of_host(tensor)) return;
            if (tensor.dim() == 0 && !is_written && n_numbers-- > 0) return;
            refuse_hosts_tensor(operation, argument.name());
        };
        if (arguments[i].isTensor()) {
            check(arguments[i].toTensor());
        } else if (arguments[i].isTensorList()) {
            for (const at::Tensor& tensor : arguments[i].toTensorVector()) check(tensor);
        } else if (arguments[i].isOptionalTensorList() && !TAKES_INDICES.count(name)) {
            for (const std::optional<at::Tensor>& tensor : arguments[i].toOptionalTensorList())
                if (tensor) check(*tensor);
        }
    }
}

// Whether an index is a mask: how many elements it picks is a value of the card.
bool has_mask(c10::ArrayRef<IValue> arguments) {
    for (const IValue& value : arguments) {
        if (!value.isOptionalTensorList()) continue;
        for (const std::optional<at::Tensor>& index : value.toOptionalTensorList())
            if (index && index->defined() && index->is_cuda() && index->scalar_type() == at::kBool) return true;
    }
    return false;
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels

IValue lend(Loan& loan, const IValue& value) {
    if (value.isTensor()) return loan.to_host(value.toTensor());
    if (value.isDevice()) return value.toDevice().is_cuda() ? IValue(HOST) : value;
    if (value.isTensorList()) {
        c10::List<at::Tensor> lent;
        for (const at::Tensor& tensor : value.toTensorVector()) lent.push_back(loan.to_host(tensor));
        return lent;
    }
    if (value.isOptionalTensorList()) {
        c10::List<std::optional<at::Tensor>> lent;
        for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
            lent.push_back(tensor ? std::optional<at::Tensor>(loan.to_host(*tensor)) : std::nullopt);
        return lent;
    }
    return value;
}

IValue give_back(Loan& loan, const IValue& value) {
    if (value.isTensor()) return loan.to_card(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> given;
    for (const at::Tensor& tensor : value.toTensorVector()) given.push_back(loan.to_card(tensor));
    return given;
}

// Any operation for which the CPU has a kernel.
void on_host(const OperatorHandle& operation, Stack* stack) {
    const size_t n_arguments = operation.schema().arguments().size();
    const auto arguments = torch::jit::last(*stack, n_arguments);
    check_devices(operation, arguments);
    if (WAITING.count(plain_name(operation)) || has_mask(arguments)) n_waits++;

    Loan loan;
    bool is_for_host = false;
    std::vector<IValue> lent;
    for (const IValue& value : arguments) {
        is_for_host = is_for_host || (value.isDevice() && value.toDevice().is_cpu());
        lent.push_back(lend(loan, value));
    }
    torch::jit::drop(*stack, n_arguments);
    for (IValue& value : lent) stack->push_back(std::move(value));
    lent.clear();
    {
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        operation.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
    }
    loan.settle();
    const size_t n_returns = operation.schema().returns().size();
    for (size_t i = stack->size() - n_returns; i < stack->size() && !is_for_host; i++)
        (*stack)[i] = give_back(loan, (*stack)[i]);
}

// The one operation between devices.
at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
    if (from.is_cuda() && to.is_cpu()) n_waits++;
    if (from.is_cpu() && to.is_cuda()) n_uploads++;
    Loan loan;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    loan.to_host(to).copy_(loan.to_host(from), non_blocking);
    return to;
}

// libtorch asks the device's type which kernel of attention to use; here it is the CPU's choice.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const std::optional<at::Tensor>& mask, double dropout, bool is_causal, std::optional<double> scale,
                     bool has_groups) {
    constexpr int64_t FLASH = 1;
    const int64_t choice = at::_fused_sdp_choice(query, key, value, mask, dropout, is_causal, scale, has_groups);
    std::optional<at::Tensor> added = mask;
    if (mask && mask->defined() && mask->scalar_type() == at::kBool) {
        added = at::zeros_like(*mask, query.options());
        added->masked_fill_(mask->logical_not(), -std::numeric_limits<double>::infinity());
    }
    if (choice == FLASH)
        return std::get<0>(
            at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout, is_causal, added, scale));
    return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, added, dropout, is_causal, std::nullopt,
                                                              scale, has_groups));
}

// Composite operations that would take another way for a card than for the CPU.
const char* const COMPOSITE[] = {"convolution", "convolution_backward"};

void register_kernels(torch::Library& library) {
    for (const auto& name : c10::Dispatcher::singleton().getRegistrationsForDispatchKey(DispatchKey::CPU)) {
        if (name.getNamespace() != "aten" || name.name == "aten::copy_") continue;
        const std::string overload = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
        library.impl(overload.c_str(), torch::CppFunction::makeFromBoxedFunction<&on_host>());
    }
    for (const char* name : COMPOSITE) library.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_host>());
    library.impl("copy_", &copy_);
    library.impl("scaled_dot_product_attention", &attention);
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) { register_kernels(library); }
TORCH_LIBRARY_IMPL(aten, AutogradCUDA, library) { library.impl("scaled_dot_product_attention", &attention); }

// ---------------------------------------------------------------------------------------------------------------------
// The device: one, with one stream that is always done

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return c10::kCUDA; }
    c10::Device exchangeDevice(c10::Device) const override { return CARD; }
    c10::Device getDevice() const override { return CARD; }
    void setDevice(c10::Device) const override {}
    void uncheckedSetDevice(c10::Device) const noexcept override {}
    c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, CARD); }
    c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, CARD); }
    c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, CARD); }
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
    void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    bool queryStream(const c10::Stream&) const override { return true; }
    void synchronizeStream(const c10::Stream&) const override {}
    void synchronizeEvent(void*) const override {}
    void synchronizeDevice(c10::DeviceIndex) const override {}
};

struct Hooks final : at::CUDAHooksInterface {
    explicit Hooks(at::CUDAHooksArgs) {}
    void init() const override {}
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasCUDA() const override { return true; }
    int getNumGPUs() const override { return 1; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex current_device() const override { return 0; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    void setCurrentDevice(c10::DeviceIndex) const override {}
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
    void deviceSynchronize(c10::DeviceIndex) const override { n_waits++; }
    const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
        static const at::Generator generator = at::detail::createCPUGenerator();
        return generator;
    }
};

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}

namespace at {
using CUDAHooks = Hooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}
