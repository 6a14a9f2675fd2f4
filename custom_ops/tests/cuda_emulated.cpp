// The CUDA half's kernels run by a CPU, block by block and phase by phase: the same templates that nvcc compiles.
//
// `order` turns the order of the blocks, the warps and the threads round (1), or shuffles the blocks (2, 3, ...): where
// something depends on it, the bits change. Shared memory and the workspace start as NaN, the former anew for every block.

#include <stdlib.h>

#include <algorithm>
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
    if (Kernel::kThreads != kSolveThreads && bytes > static_cast<size_t>(kSharedBytes)) abort();
    char* const shared = static_cast<char*>(aligned_alloc(16, round_up<size_t>(most<size_t>(bytes, 1), 16)));
    std::vector<int64_t> blocks(static_cast<size_t>(Kernel::blocks(call.plan, call.count)));
    std::iota(blocks.begin(), blocks.end(), 0);
    if (order == 1) std::reverse(blocks.begin(), blocks.end());
    if (order > 1) std::shuffle(blocks.begin(), blocks.end(), std::mt19937(static_cast<unsigned>(order)));
    for (const int64_t index : blocks) {
      memset(shared, 0xff, bytes);
      HostBlock block(Kernel::kThreads, shared, order == 1);
      Kernel::run(block, call, index);
    }
    free(shared);
    return true;
  }
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT size_t asvp_workspace_cuda_emulated(const asvp_problem* problem) {
  return static_cast<size_t>(make_plan(*problem, nullptr, nullptr, 0).bytes);
}

// Even orders keep the solve to 48 KiB of shared memory, odd ones give it what a large GPU has.
EXPORT int asvp_perturb_cuda_emulated(const asvp_problem* problem, const void* x, void* y, void* workspace, int order) {
  const Plan plan = make_plan(*problem, x, y, order % 2 ? 227 << 10 : kSharedBytes);
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

// The solve alone: `matrix` (n x n, symmetric) is destroyed; k rows of vectors, least(k + 1, n) values.
EXPORT void asvp_leading_cuda_emulated(int n, int k, double* matrix, double* values, double* vectors, int threads,
                                       int backwards, int doubtful) {
  const size_t square = static_cast<size_t>(n) * static_cast<size_t>(round_up(n, 8));
  const size_t length = static_cast<size_t>(vector_length(n));
  std::vector<double> hot(static_cast<size_t>(hot_bytes(n, threads)) / 8 + 1, NAN), z(square, NAN), factors(square, NAN),
      a(square, NAN), cold(2 * (length + 8), NAN);
  std::vector<int32_t> order(length + 1);
  std::vector<Turn> turns(length);
  Place at;
  double** names[] = {&at.d, &at.e, &at.squares, &at.h, &at.x, &at.p, &at.first, &at.v, &at.w};
  for (size_t i = 0; i < kHotVectors; ++i) *names[i] = hot.data() + i * length;
  at.scalars = hot.data() + kHotVectors * length;
  at.flags = reinterpret_cast<int32_t*>(at.scalars + 8);
  at.a = a.data();
  at.z = z.data();
  at.factors = at.six = factors.data();
  at.ld = at.lda = round_up(n, 8);
  at.low = cold.data();
  at.high = at.low + length + 8;
  at.order = order.data();
  at.turned = order.data() + length;
  at.turns = turns.data();
  for (int i = 0; i < n; ++i) std::copy(matrix + i * n, matrix + (i + 1) * n, at.a + i * at.lda);
  HostBlock block(threads, nullptr, backwards != 0);
  leading(block, n, k, at, doubtful != 0);
  std::copy(at.low, at.low + least(k + 1, n), values);
  for (int i = 0; i < k; ++i) std::copy(at.z + at.order[i] * at.ld, at.z + at.order[i] * at.ld + n, vectors + i * n);
}

// The most runs that a thread of a Gram block would have to hold, less what it can: over all tiles, at most zero. And
// the most shared memory that it takes.
template <int M, class E, bool Tokens>
static void measure(int tile, int* excess, int* shared) {
  typedef Gram<M, E, Tokens> Kernel;
  for (const bool diagonal : {true, false}) {
    const Stage stage = make_stage(static_cast<Mode>(M), tile, diagonal, Tokens, Kernel::V);
    Plan plan = {};
    plan.tile = tile;
    const int rows = stage.tiles * (Tokens ? stage.span : tile);
    *excess = most(*excess, stage.turn == 0 ? 1000 : ceil_div(rows, stage.turn) - Kernel::kRuns);
    *shared = most(*shared, Kernel::shared_bytes(plan));
    if (stage.groups < 1 || stage.chain < 8 || stage.chain % 8 || stage.subs > kGramThreads) *excess = 2000;
    if (stage.tiles * tile * stage.span > stage_elements(static_cast<Mode>(M))) *excess = 3000;
  }
}

EXPORT void asvp_gram_limits_cuda_emulated(int* excess, int* shared) {
  *excess = -1000;
  *shared = 0;
  for (int tile = 4; tile <= kMostTile; tile += 4) {
    measure<kNarrow, float, false>(tile, excess, shared);
    measure<kNarrow, float, true>(tile, excess, shared);
    measure<kWide, float, false>(tile, excess, shared);
    measure<kWide, float, true>(tile, excess, shared);
    measure<kWide, Half, false>(tile, excess, shared);
    measure<kWide, Half, true>(tile, excess, shared);
    measure<kTwofold, double, false>(tile, excess, shared);
    measure<kTwofold, double, true>(tile, excess, shared);
  }
}

EXPORT void asvp_to_half_emulated(const double* values, uint16_t* halves, uint16_t* brains, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    Half half;
    Brain brain;
    narrow(values[i], half);
    narrow(values[i], brain);
    halves[i] = half.bits;
    brains[i] = brain.bits;
  }
}
