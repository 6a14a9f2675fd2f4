// What a call looks like to its kernels: shapes, cuts, and where everything lies in the workspace. All of it follows from
// the problem alone, neither from the GPU nor from what else is in the batch: bits are the same everywhere.
#ifndef ASVP_CUDA_PLAN_H_
#define ASVP_CUDA_PLAN_H_

#include "asvp.h"
#include "scalar.h"

namespace asvp {
namespace cuda {

// The rank is bounded too: a weight of every component for four positions has to fit into a block's shared memory, which
// holds 1016 of them (2544 for float32 maps).
constexpr int64_t kMostChannels = 8192;
constexpr int64_t kWaveBytes = int64_t{128} << 20;  // samples in flight hold about so much scratch memory
constexpr int kGramThreads = 288;                   // two groups of 144 sub-tiles (see gram.h), in whole warps
constexpr int kSolveThreads = 512;
constexpr int kApplyThreads = 256;
constexpr int kMostTile = 64;
// Shared memory of a block: every GPU gives 48 KiB unasked, and several such blocks fit. A little is left for what is
// static.
constexpr int kSharedBytes = (48 << 10) - 256;

// How the Gram matrix is summed.
enum Mode {
  kNarrow = 0,   // float32 products and short chains, the chains added in two float32
  kWide = 1,     // float64
  kTwofold = 2,  // float64 products split exactly, sums in two float64
};

// One stage of a Gram block: `span` positions of one tile of channels, or of two. The tile times itself is cut into
// sub-tiles of 4 x 4, of a tile with itself only those on and above the diagonal (or in a square that crosses it); `groups`
// groups of threads each take all sub-tiles over `chain` positions of the stage.
struct Stage {
  int quads, subs, groups, chain, span, tiles;
  int runs, turn;  // loads of 16 bytes in a row of channels or tokens; rows that the threads take at a time (see gram.h)
};

ASVP_HD constexpr int stage_elements(Mode mode) { return mode == kNarrow ? 4096 : 2048; }  // 16 KiB either way

ASVP_HD Stage make_stage(Mode mode, int tile, bool diagonal) {
  Stage s = {};
  s.quads = tile / 4;
  s.tiles = diagonal ? 1 : 2;
  const int side = s.quads % 2 ? 1 : 2, squares = s.quads / side;  // see place_of
  s.subs = (diagonal ? squares * (squares + 1) / 2 : squares * squares) * side * side;
  const int elements = stage_elements(mode);
  s.groups = least(least(64, kGramThreads / s.subs), elements / (8 * s.tiles * tile));
  s.chain = least(32, elements / (s.groups * s.tiles * tile) / 8 * 8);
  s.span = s.groups * s.chain;
  return s;
}

ASVP_HD Stage make_stage(Mode mode, int tile, bool diagonal, bool tokens, int lanes) {
  Stage s = make_stage(mode, tile, diagonal);
  s.runs = tokens ? ceil_div(tile, lanes) : s.span / lanes;
  s.turn = kGramThreads / s.runs;
  return s;
}

struct State {
  uint64_t peak;  // the largest magnitude, as Magnitude<E> orders them
  int32_t kept;   // r; 0: leave the map as it is; -1: NaN or infinity in it
  int32_t again;  // the Gram matrix is to be summed in float64
  char room[48];
};
static_assert(sizeof(State) == 64, "");

struct Plan {
  int64_t n, c, l, rank;
  int64_t sample_stride, channel_stride, position_stride;
  int dtype, element_bytes;
  bool tokens;   // the channels of a position lie side by side
  bool aligned;  // 16 bytes at a time may be loaded and stored
  int tile, tiles, pairs;
  Stage stages[2][2];  // of the first pass and of the second; of one tile and of two
  int64_t chunks, fan;  // blocks that share a pair of tiles; how many of them a first sum takes
  int64_t ld, squares, basis_ld;
  int64_t wave;
  bool whole;  // one block takes a matrix through all stages
  // Apply.
  int positions;   // of a block; 0: the rank is too large
  int tile_at, weights_at, tile_stride, apply_bytes;  // in shared memory; tile_at < 0: no tile, the map is read twice
  int64_t apply_tiles;
  int solve_bytes;  // of shared memory, at most, for the solve: what the GPU gives. No bit depends on it.
  // Bytes of a sample.
  int64_t counters_at, cleared_bytes, basis_at, squares_at, vectors_at, sums_at, pair_bytes, sample_bytes;
  int64_t bytes;
};

struct Call {
  Plan plan;
  double gain, energy;
  const char* x;
  char* y;
  char* memory;
  int64_t first;  // sample of the wave
  int64_t count;
  int pass;       // 1: only the samples whose sums are taken again

  ASVP_HD char* sample_memory(int64_t s) const { return memory + s * plan.sample_bytes; }
  ASVP_HD State& state(int64_t s) const { return *reinterpret_cast<State*>(sample_memory(s)); }
  ASVP_HD uint32_t* counters(int64_t s, int pair, int pass) const {
    return reinterpret_cast<uint32_t*>(sample_memory(s) + plan.counters_at) +
           (static_cast<int64_t>(pass) * plan.pairs + pair) * (1 + ceil_div(plan.chunks, plan.fan));
  }
  template <class T>
  ASVP_HD T* before(int64_t s) const { return reinterpret_cast<T*>(sample_memory(s) + plan.basis_at); }
  template <class T>
  ASVP_HD T* after(int64_t s) const { return before<T>(s) + plan.c * plan.basis_ld; }
  ASVP_HD double* square(int64_t s, int which) const {
    return reinterpret_cast<double*>(sample_memory(s) + plan.squares_at) + which * plan.ld * plan.c;
  }
  ASVP_HD double* vectors(int64_t s) const { return reinterpret_cast<double*>(sample_memory(s) + plan.vectors_at); }
  ASVP_HD double* sums(int64_t s, int64_t chunk, int pair) const {
    return reinterpret_cast<double*>(sample_memory(s) + plan.sums_at + (chunk * plan.pairs + pair) * plan.pair_bytes);
  }
  template <class E>
  ASVP_HD const E* input(int64_t s) const { return reinterpret_cast<const E*>(x) + (first + s) * plan.sample_stride; }
  template <class E>
  ASVP_HD E* output(int64_t s) const { return reinterpret_cast<E*>(y) + (first + s) * plan.sample_stride; }
};

constexpr int kVectors = 20;  // of at least `ld` float64 each, for the solve

inline Mode first_mode(int dtype) {
  return dtype == ASVP_FLOAT32 ? kNarrow : dtype == ASVP_FLOAT64 ? kTwofold : kWide;
}

// Few sub-tiles past the edge, and few idle threads.
inline int choose_tile(Mode mode, int64_t c) {
  if (c <= kMostTile) return static_cast<int>(round_up<int64_t>(c, 4));
  int best = kMostTile;
  double least_cost = 1e300;
  for (int tile = 32; tile <= kMostTile; tile += 8) {  // eights: every tile of aligned tokens starts at 16 bytes
    const int64_t tiles = ceil_div<int64_t>(c, tile);
    const double cost = static_cast<double>(tiles) / make_stage(mode, tile, true).groups +
                        static_cast<double>(tiles * (tiles - 1) / 2) / make_stage(mode, tile, false).groups;
    if (cost > least_cost) continue;
    least_cost = cost;
    best = tile;
  }
  return best;
}

inline Plan make_plan(const asvp_problem& problem, const void* x, const void* y, int solve_bytes) {
  Plan p = {};
  p.solve_bytes = solve_bytes;
  p.n = problem.n;
  p.c = problem.c;
  p.l = problem.l;
  p.rank = least(problem.rank, least(p.c, p.l));
  // The stride of a single element may be anything: it tells how the map is laid out, and is multiplied.
  const auto stride = [](int64_t count, int64_t given) {
    return count > 1 ? given : most<int64_t>(1, least<int64_t>(given, 1 << 30));
  };
  p.sample_stride = stride(p.n, problem.sample_stride);
  p.channel_stride = stride(p.c, problem.channel_stride);
  p.position_stride = stride(p.l, problem.position_stride);
  p.dtype = problem.dtype;
  p.element_bytes = p.dtype == ASVP_FLOAT64 ? 8 : p.dtype == ASVP_FLOAT32 ? 4 : 2;
  p.tokens = p.channel_stride == 1 && p.position_stride != 1;
  const int64_t step = p.tokens ? p.position_stride : p.channel_stride, lanes = 16 / p.element_bytes;
  p.aligned = (p.tokens || p.position_stride == 1) && (p.c == 1 || p.l == 1 || step % lanes == 0) &&
              (p.n == 1 || p.sample_stride % lanes == 0) &&
              (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % 16 == 0;

  const Mode mode = first_mode(p.dtype);
  p.tile = choose_tile(mode, p.c);
  p.tiles = static_cast<int>(ceil_div<int64_t>(p.c, p.tile));
  p.pairs = p.tiles * (p.tiles + 1) / 2;
  for (int pass = 0; pass < 2; ++pass)
    for (int two = 0; two < 2; ++two)
      p.stages[pass][two] = make_stage(pass ? kWide : mode, p.tile, !two, p.tokens, static_cast<int>(lanes));
  // Two rounds of two blocks on every multiprocessor of a large GPU. A chunk's sums take 4 c^2 bytes: with at least 2 c
  // positions to each, those of all take at most half of a float32 map.
  const int64_t shortest = most<int64_t>(128, 2 * p.c), wanted = most<int64_t>(1, 528 / p.pairs);
  p.chunks = most<int64_t>(1, least(wanted, p.l / shortest));
  p.fan = 1;
  while (p.fan * p.fan < p.chunks) ++p.fan;

  p.ld = round_up<int64_t>(p.c, 8);  // at least six: see `factors`
  p.basis_ld = round_up<int64_t>(p.rank, 4);
  p.squares = p.dtype == ASVP_FLOAT64 ? 5 : 3;
  p.whole = p.chunks == 1 && p.pairs == 1;

  // Apply: as many positions as fit into shared memory, in float32 unless the map is float64, beside their weights.
  const int wide = p.dtype == ASVP_FLOAT32 ? 4 : 8, kept_wide = p.dtype == ASVP_FLOAT64 ? 8 : 4;
  const int64_t partial = int64_t{p.whole ? kGramThreads : kApplyThreads} * 16 * wide / 2;
  p.tile_at = -1;
  p.tile_stride = 0;
  for (p.positions = 128; p.positions >= 4; p.positions /= 2) {
    const int64_t elements = p.tokens ? (p.c | 1) * p.positions : p.c * p.positions;
    const int64_t weights = p.basis_ld * p.positions * wide;
    const bool fits = partial + weights + elements * kept_wide <= kSharedBytes;
    if (!fits && (p.positions > 8 || partial + weights > kSharedBytes)) continue;
    if (fits) p.tile_at = static_cast<int>(partial + weights);
    if (fits) p.tile_stride = static_cast<int>(p.tokens ? p.c | 1 : p.positions);
    p.apply_bytes = static_cast<int>(partial + weights + (fits ? elements * kept_wide : 0));
    break;
  }
  p.weights_at = static_cast<int>(partial);
  if (p.positions < 4) p.positions = 0;
  p.apply_tiles = p.positions > 0 ? ceil_div<int64_t>(p.l, p.positions) : 0;

  int64_t at = 0;
  const auto take = [&at](int64_t bytes) {
    const int64_t here = at;
    at += round_up<int64_t>(bytes, 256);
    return here;
  };
  take(sizeof(State));
  p.counters_at = static_cast<int64_t>(sizeof(State));
  at = p.counters_at + round_up<int64_t>(2 * p.pairs * (1 + ceil_div(p.chunks, p.fan)) * 4, 64);
  p.cleared_bytes = at;
  at = round_up<int64_t>(at, 256);
  p.basis_at = take(2 * p.c * p.basis_ld * wide);
  p.squares_at = take(p.squares * p.ld * p.c * 8);
  p.vectors_at = take((kVectors * round_up<int64_t>(p.ld + 8, 32) + 512) * 8);
  const int subs = make_stage(mode, p.tile, p.pairs == 1).subs;
  p.pair_bytes = int64_t{subs} * 16 * 8 * (p.dtype == ASVP_FLOAT64 ? 2 : 1);
  p.sums_at = take(p.chunks * p.pairs * p.pair_bytes);
  p.sample_bytes = at;
  p.wave = least(p.n, most<int64_t>(1, kWaveBytes / p.sample_bytes));
  p.bytes = p.wave * p.sample_bytes;
  return p;
}

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_PLAN_H_
