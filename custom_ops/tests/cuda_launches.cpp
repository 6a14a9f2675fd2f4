// Every launch that a plan asks for, written down instead of made: the plan and the sequence of kernels are those of the library.
// Its arguments are the bytes of shared memory that a block may ask for, one for each kind of GPU.
//
// Prints a line for each kernel: name, threads, blocks that a multiprocessor is to hold, the most blocks of a grid, and the most
// shared memory of a block on each GPU. Ends with 1 where a part of the workspace reaches into the next or a memset is too large.
// Built to trap on overflow.

#include <cxxabi.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <random>
#include <string>
#include <typeindex>

#include "sequence.h"

using namespace asvp::cuda;

namespace {

struct Worst {
  int threads, blocks_wanted;
  int64_t grid;
  std::vector<int> shared;
};

std::map<std::type_index, Worst> launches;
std::vector<int> limits;
int64_t planned = 0, refused = 0, largest = 0;

[[noreturn]] void fail(const char* what, const Plan& p) {
  printf("%s: n %lld c %lld l %lld rank %lld dtype %d tokens %d\n", what, static_cast<long long>(p.n),
         static_cast<long long>(p.c), static_cast<long long>(p.l), static_cast<long long>(p.rank), p.dtype, p.tokens);
  exit(1);
}

struct Recorder {
  bool clear(const Call& call) {
    const Plan& p = call.plan;
    if (p.cleared_bytes > p.sample_bytes) fail("more is cleared than a sample has", p);
    if (call.count > 1 && p.sample_bytes > INT32_MAX) fail("the pitch of the memset", p);
    return true;
  }

  template <class Kernel>
  bool launch(const Call& call) {
    Worst& worst = launches.try_emplace(typeid(Kernel), Worst{Kernel::kThreads, Kernel::kBlocks, 0, {}}).first->second;
    const int64_t grid = Kernel::blocks(call.plan, call.count);
    if (grid < 1) fail("an empty grid", call.plan);
    worst.grid = most(worst.grid, grid);
    worst.shared.resize(limits.size());
    Plan plan = call.plan;
    for (size_t i = 0; i < limits.size(); ++i) {
      plan.solve_bytes = limits[i];
      worst.shared[i] = most(worst.shared[i], Kernel::shared_bytes(plan));
    }
    return true;
  }
};

// Each part of the workspace ends before the next begins, and all of them before the end.
template <class T>
void check_parts(const Call& call) {
  const Plan& p = call.plan;
  const int64_t s = p.wave - 1, counters = 1 + ceil_div(p.chunks, p.fan);
  const auto at = [&](const void* place) { return static_cast<const char*>(place) - call.sample_memory(s); };
  const int64_t squares = p.squares * p.ld * p.c * 8, vectors = at(call.vectors(s)), sums = at(call.sums(s, 0, 0));
  if (at(call.counters(s, p.pairs - 1, 1)) + counters * 4 > p.cleared_bytes) fail("counters", p);
  if (p.cleared_bytes > at(call.before<T>(s))) fail("what is cleared", p);
  if (at(call.after<T>(s) + p.c * p.basis_ld) > at(call.square(s, 0))) fail("the basis", p);
  if (at(call.square(s, 0)) + squares > vectors) fail("the squares", p);
  if (vectors + kVectors * vector_length(p.c) * 8 + kSolveThreads * 4 > sums) fail("the vectors", p);
  if (at(call.sums(s, p.chunks - 1, p.pairs - 1)) + p.pair_bytes > p.sample_bytes) fail("the sums", p);
  if (p.sample_bytes % 256 != 0 || p.bytes != p.wave * p.sample_bytes) fail("the samples", p);
  if (p.wave > 1 && p.bytes > kWaveBytes) fail("the wave", p);
}

template <class E>
void plan(int64_t n, int64_t c, int64_t l, int64_t rank, int dtype, bool tokens, bool all_waves) {
  const asvp_problem problem = {n, c, l, c * l, tokens ? 1 : l, tokens ? c : 1, static_cast<asvp_dtype>(dtype), rank, 3.0, 1.0};
  const Plan p = make_plan(problem, nullptr, nullptr, kSharedBytes);
  ++planned;
  refused += p.positions == 0;
  if (p.positions == 0) {
    if (p.basis_ld <= 1016) fail("a rank that is refused", p);
    return;
  }
  largest = most(largest, p.bytes);
  if (p.apply_bytes > kSharedBytes || p.tile_stride < 0 || p.tile > kMostTile) fail("the tile", p);
  static char memory[1];  // addresses alone
  Call call = {p, 3.0, 1.0, nullptr, nullptr, memory, 0, p.wave, 0};
  check_parts<typename Arithmetic<E>::Type>(call);
  Recorder go;
  if (all_waves)
    enqueue<E>(go, call);
  else if (p.tokens)
    enqueue_wave<E, true>(go, call);
  else
    enqueue_wave<E, false>(go, call);
}

void plan_of(int dtype, int64_t n, int64_t c, int64_t l, int64_t rank, bool tokens, bool all_waves) {
  switch (dtype) {
    case ASVP_FLOAT32: return plan<float>(n, c, l, rank, dtype, tokens, all_waves);
    case ASVP_FLOAT16: return plan<Half>(n, c, l, rank, dtype, tokens, all_waves);
    case ASVP_BFLOAT16: return plan<Brain>(n, c, l, rank, dtype, tokens, all_waves);
    default: return plan<double>(n, c, l, rank, dtype, tokens, all_waves);
  }
}

// Every C, and with each the lengths and ranks at which a plan changes.
void sweep() {
  for (int64_t c = 1; c <= kMostChannels; ++c) {
    const int64_t shortest = most<int64_t>(128, 2 * c);
    for (const int64_t l : {int64_t{1}, c, 2 * shortest - 1, 2 * shortest, 528 * shortest, int64_t{1} << 27})
      for (const int64_t rank : {int64_t{1}, int64_t{5}, int64_t{1016}, int64_t{1017}, c})
        for (int dtype = ASVP_FLOAT32; dtype <= ASVP_FLOAT64; ++dtype)
          for (const bool tokens : {false, true}) plan_of(dtype, 64, c, l, rank, tokens, false);
  }
}

// Sizes of every order of magnitude.
void sample(int count) {
  std::mt19937_64 bits(0);
  const auto below = [&](int64_t limit) {
    const double share = static_cast<double>(bits() >> 11) * 0x1p-53;
    return least(limit, static_cast<int64_t>(exp2(share * log2(static_cast<double>(limit + 1)))));
  };
  for (int i = 0; i < count; ++i) {
    const int64_t n = below(64), c = below(kMostChannels), l = below(int64_t{1} << 27);
    plan_of(static_cast<int>(bits() % 4), n, c, l, below(c), bits() % 2, true);
  }
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) limits.push_back(atoi(arguments[i]));
  static_assert(sizeof(Call) <= 4096, "what a kernel takes as its argument");
  sweep();
  sample(200000);
  for (const auto& [kernel, worst] : launches) {
    char* const name = abi::__cxa_demangle(kernel.name(), nullptr, nullptr, nullptr);
    printf("%s\t%d\t%d\t%lld", name, worst.threads, worst.blocks_wanted, static_cast<long long>(worst.grid));
    for (const int bytes : worst.shared) printf("\t%d", bytes);
    printf("\n");
    free(name);
  }
  fprintf(stderr, "%lld plans, %lld refused for their rank, at most %lld bytes of workspace\n",
          static_cast<long long>(planned), static_cast<long long>(refused), static_cast<long long>(largest));
  return 0;
}
