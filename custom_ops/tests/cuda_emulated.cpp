// The CUDA half's kernels run by a CPU, block by block and phase by phase: the same templates that nvcc compiles.
//
// `order` turns the order of the blocks, the warps and the threads round (1), or shuffles the blocks (2, 3, ...): where
// something depends on it, the bits change. Shared memory and the workspace start as NaN, the former anew for every block.

#include <stdlib.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>

#include "sequence.h"

using namespace asvp::cuda;

namespace {

struct Emulator {
  int order;

  bool clear(const Call& call) {
    for (int64_t s = 0; s < call.count; ++s)
      memset(call.sample_memory(s), 0, static_cast<size_t>(call.plan.cleared_bytes));
    return true;
  }

  template <class Kernel>
  bool launch(const Call& call) {
    const size_t bytes = static_cast<size_t>(Kernel::shared_bytes(call.plan));
    if (bytes > static_cast<size_t>(kSharedBytes)) abort();
    const std::unique_ptr<char[]> raw(new char[bytes + 16]);
    char* shared = raw.get() + (16 - reinterpret_cast<uintptr_t>(raw.get()) % 16) % 16;
    std::vector<int64_t> blocks(static_cast<size_t>(Kernel::blocks(call.plan, call.count)));
    std::iota(blocks.begin(), blocks.end(), 0);
    if (order == 1) std::reverse(blocks.begin(), blocks.end());
    if (order > 1) std::shuffle(blocks.begin(), blocks.end(), std::mt19937(static_cast<unsigned>(order)));
    for (const int64_t index : blocks) {
      memset(shared, 0xff, bytes);
      HostBlock block(Kernel::kThreads, shared, order == 1);
      Kernel::run(block, call, index);
    }
    return true;
  }
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT size_t asvp_workspace_cuda_emulated(const asvp_problem* problem) {
  return static_cast<size_t>(make_plan(*problem, nullptr, nullptr).bytes);
}

EXPORT int asvp_perturb_cuda_emulated(const asvp_problem* problem, const void* x, void* y, void* workspace, int order) {
  const Plan plan = make_plan(*problem, x, y);
  if (plan.positions == 0 || plan.c > kMostChannels) return ASVP_BAD_ARGUMENT;
  const Call call = {plan, problem->gain, problem->energy, static_cast<const char*>(x), static_cast<char*>(y),
                     static_cast<char*>(workspace), 0, 0, 0};
  Emulator go = {order};
  switch (problem->dtype) {
    case ASVP_FLOAT32: return enqueue<float>(go, call) ? ASVP_OK : ASVP_CUDA_ERROR;
    case ASVP_FLOAT16: return enqueue<Half>(go, call) ? ASVP_OK : ASVP_CUDA_ERROR;
    case ASVP_BFLOAT16: return enqueue<Brain>(go, call) ? ASVP_OK : ASVP_CUDA_ERROR;
    case ASVP_FLOAT64: return enqueue<double>(go, call) ? ASVP_OK : ASVP_CUDA_ERROR;
  }
  return ASVP_BAD_ARGUMENT;
}
