// Tells libtorch, before `main` begins, to take only what gives the same bits each time, unless the environment says
// that the fastest may be taken. The bindings that the rest is written with cannot say it.
//
// What libtorch then holds true is left in the environment, where `determinism.rs` reads it: so no code of ours has to
// call across languages, and a program that was linked without this file is found out.

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

// Of MKL, where libtorch was built with it: the kernels that it takes on this processor, by a number of its own.
extern "C" int mkl_serv_cbwr_get_auto_branch() __attribute__((weak));

namespace {

// As `config::Determinism::VARIABLE` and `models::determinism::FLAGS_VARIABLE`.
constexpr const char *kDeterminism = "FLOW_RL_DETERMINISM";
constexpr const char *kFlags = "FLOW_RL_LIBTORCH_FLAGS";
// As `service::device_kind::LIBTORCH_VARIABLE`.
constexpr const char *kKernels = "FLOW_RL_LIBTORCH_KERNELS";

// As `service::exit_code::BAD_USAGE`.
constexpr int kBadUsage = 2;

bool is_fast() {
  const char *set = std::getenv(kDeterminism);
  const std::string_view asked = set == nullptr ? "" : set;
  if (asked.empty() || asked == "strict" || asked == "fast") {
    return asked == "fast";
  }
  std::fprintf(stderr, "error: %s is `%s`; write `strict` or `fast`\n", kDeterminism, set);
  std::_Exit(kBadUsage);
}

void make_strict(at::Context &context) {
  // An operation that can only give other bits each time fails, and so is seen.
  context.setDeterministicAlgorithms(/*b=*/true, /*warn_only=*/false);
  // Memory that nothing was written to is written by whoever asked for it; to fill it first costs time.
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  // It comes first for bfloat16 on Hopper, and its backward pass adds up in any order.
  context.setSDPUseCuDNN(false);
  // Partial sums stay in float32, so that how a product was split shows least. To forbid splitting here as well would make
  // plain cuBLAS refuse all products in bfloat16; the sizes of its workspaces, which the launcher sets, forbid it.
  context.setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false, /*allow_splitk=*/true);
}

std::string flag(const char *name, bool value) { return std::string(name) + (value ? "=1" : "=0"); }

std::string flags(const at::Context &context) {
  const bool is_deterministic = context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly();
  const bool reduces =
      context.allowBF16ReductionCuBLAS() == at::CuBLASReductionOption::AllowReducedPrecisionWithSplitK;
  return flag("deterministic_algorithms", is_deterministic) + " " +
         flag("fill_uninitialized_memory", context.deterministicFillUninitializedMemory()) + " " +
         flag("deterministic_cudnn", context.deterministicCuDNN()) + " " +
         flag("cudnn_attention", context.userEnabledCuDNNSDP()) + " " +
         flag("bf16_reduction", reduces);
}

// Which of its kernels libtorch and MKL take here, since kernels differ in the order in which they add up.
std::string kernels() {
  const std::string mkl =
      mkl_serv_cbwr_get_auto_branch == nullptr ? "none" : std::to_string(mkl_serv_cbwr_get_auto_branch());
  return std::string("libtorch=") + TORCH_VERSION + " aten=" + at::get_cpu_capability() + " mkl=" + mkl;
}

// Runs when the program is loaded, after libtorch's own initialisers and before any thread of ours.
const bool is_told = [] {
  at::Context &context = at::globalContext();
  if (!is_fast()) {
    make_strict(context);
  }
  return setenv(kFlags, flags(context).c_str(), /*overwrite=*/1) == 0 &&
         setenv(kKernels, kernels().c_str(), /*overwrite=*/1) == 0;
}();

} // namespace
