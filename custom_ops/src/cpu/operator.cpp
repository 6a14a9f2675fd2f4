// asvp_perturb_cpu: the plan of a call, its stages, and how they spread over the host's threads.
//
// A sample's positions are cut into chunks, a chunk into blocks; where the cuts lie depends on the problem alone. Each chunk sums
// its own Gram matrix and the chunks are added in their order, so the bits do not depend on how many threads there are, nor
// on what else is in the batch.
//
// Accuracy. float32 maps: products and chains of 32 sums in float32 inside a block, float64 between blocks. That is an error of
// about 1e-8 of s_1^2 in the Gram matrix, which a small s_r or a narrow gap can blow up beyond what docs/concepts/operator.md allows; the
// solve sees it coming (`too_blurred`), and then the sum is taken again in float64. Half types: float64 throughout, because two
// units in the last place must hold in every element, also where M and its change cancel. float64 maps: a Gram matrix
// loses what lies below 1e-8 s_1, so the sum is taken twice, the second time over U^T M (see `refine`).

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <new>

#include "../decide.h"
#include "kernels.h"

namespace asvp {
namespace {

constexpr int64_t kMostChunks = 64;                   // of a sample; so many threads can share one
constexpr int64_t kStateBytes = 64;
constexpr int64_t kMostSlots = 64;                    // working sets; threads beyond wait for one
constexpr int64_t kWaveBytes = int64_t{64} << 20;     // samples in flight hold about so much
// Maps from here on are written past the caches: a second-level cache of one core would not hold them for the next layer, and
// a plain store reads the line first, from rows that lie a power of two apart. Halves the last pass at 180 x 128 x 128.
constexpr int64_t kPastBytes = int64_t{4} << 20;

// From here on Lanczos and its proof beat the direct solve, which takes a quarter of a call at 256 x 64 x 64: as fast at 200
// channels, 0.5 to 0.7 of the time at 256 and 512.
constexpr int64_t kQuickChannels = 224;

struct Plan {
  int64_t n, c, l, rank;
  asvp_dtype dtype;
  int64_t rows;    // c rounded up to fours
  int64_t ld;      // c rounded up to whole vectors of float64, and not a multiple of 2 KiB
  int64_t width;   // of a block in float32; half of it in float64, which is as many bytes
  int64_t stride;  // of a block's rows: one cache line more, so that a column of lines spreads over all sets of the caches
  int64_t chunk, chunks, tiles;
  int64_t wave;    // samples in flight
  int64_t slots;
  // Bytes: a sample's parts, a slot's parts.
  int64_t sums_at, u_at, a_at, z_at, y_at, work_at, sample_bytes;
  int64_t weights_at, staging_at, slot_bytes;
  int64_t samples_at, slots_at, bytes;
};

Plan make_plan(const asvp_problem& problem) {
  Plan p;
  p.n = problem.n;
  p.c = problem.c;
  p.l = problem.l;
  p.dtype = static_cast<asvp_dtype>(problem.dtype);
  p.rank = least(problem.rank, least(p.c, p.l));
  p.rows = round_up(p.c, 4);
  p.ld = round_up(p.c, 8);
  if (p.ld % 64 == 0) p.ld += 8;
  // 2 KiB a row: long enough that the sums over lanes at its end cost a tenth of the products, short enough that a
  // block of 512 channels stays in a second-level cache of 1 MiB.
  p.width = p.c <= 512 ? 512 : p.c <= 1024 ? 256 : 128;
  p.width = least(p.width, round_up(p.l, 16));
  p.stride = p.width + 16;
  // A chunk's sums take c^2 / 2 float64, the map's share of it c * chunk elements: with chunks this long the sums of all
  // take at most a quarter of a float32 map, and adding them up, which one thread does, stays short beside the products.
  const int64_t shortest = most((p.c <= 128 ? 4 : 2) * p.width, 4 * p.c);
  const int64_t wanted = most(1, least(kMostChunks, p.l / shortest));
  p.chunk = round_up((p.l + wanted - 1) / wanted, p.width);
  p.chunks = (p.l + p.chunk - 1) / p.chunk;
  p.tiles = p.rows / 4;

  int64_t at = 0;
  const auto take = [&at](int64_t bytes) {
    const int64_t here = at;
    at += round_up(bytes, 64);
    return here;
  };
  const int64_t square = p.ld * p.ld * 8;
  take(kStateBytes + p.chunks * 8);  // State and the chunks' maxima
  p.sums_at = take(p.chunks * sum_tile(p.tiles, p.tiles, p.tiles) * 8);
  p.u_at = take(2 * p.c * p.rank * 8);
  p.a_at = take(square);
  p.z_at = take(square);
  p.y_at = take(square);
  p.work_at = take(11 * p.ld * 8 + 64);
  p.sample_bytes = at;

  at = 0;
  take(p.rows * p.stride * 4);
  p.weights_at = take((p.dtype != ASVP_FLOAT64 ? p.rank : p.rows) * p.stride * 4);
  p.staging_at = take(16 * (p.c + 16) * 8);
  p.slot_bytes = at;

  p.wave = least(p.n, most(1, least(kMostSlots, kWaveBytes / p.sample_bytes)));
  p.slots = least(kMostSlots, p.wave * p.chunks);
  at = 64;  // the mask of free slots
  p.samples_at = take(p.wave * p.sample_bytes);
  p.slots_at = take(p.slots * p.slot_bytes);
  p.bytes = at;
  return p;
}

// What one sample carries from stage to stage.
struct State {
  double largest;   // magnitude; infinity: the sample holds NaN or infinity
  double factor;    // a power of two that brings float64 maps to order 1; else 1
  int64_t kept;     // r
  int32_t again;    // the Gram matrix is to be summed in float64
};
static_assert(sizeof(State) <= kStateBytes, "");

struct Call {
  const asvp_problem* problem;
  Plan plan;
  const Kernels* kernels;
  const char* x;
  char* y;
  char* memory;
  asvp_parallel_for parallel_for;
  void* host;
  int64_t first;  // sample of the wave
  int64_t count;  // samples in this wave

  char* sample_memory(int64_t s) const { return memory + plan.samples_at + (s - first) * plan.sample_bytes; }
  State& state(int64_t s) const { return *reinterpret_cast<State*>(sample_memory(s)); }
  double* maxima(int64_t s) const { return reinterpret_cast<double*>(sample_memory(s) + kStateBytes); }
  double* sums(int64_t s, int64_t chunk) const {
    return reinterpret_cast<double*>(sample_memory(s) + plan.sums_at) + chunk * sum_tile(plan.tiles, plan.tiles, plan.tiles);
  }
  double* part(int64_t s, int64_t at) const { return reinterpret_cast<double*>(sample_memory(s) + at); }
  std::atomic<uint64_t>& free_slots() const { return *reinterpret_cast<std::atomic<uint64_t>*>(memory); }
  Layout layout() const {
    return {plan.dtype, plan.c, problem->channel_stride, problem->position_stride};
  }
  int64_t element_bytes() const { return plan.dtype == ASVP_FLOAT64 ? 8 : plan.dtype == ASVP_FLOAT32 ? 4 : 2; }
  const void* input(int64_t s) const { return x + s * problem->sample_stride * element_bytes(); }
  void* output(int64_t s) const { return y + s * problem->sample_stride * element_bytes(); }
};

// A working set for one task. The lowest free one, so that few threads touch, and keep in their caches, few of them.
class Slot {
 public:
  explicit Slot(const Call& call) : mask_(call.free_slots()) {
    uint64_t free = mask_.load(std::memory_order_relaxed);
    for (;;) {
      if (free == 0) {
        free = mask_.load(std::memory_order_relaxed);
        continue;
      }
      if (mask_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire, std::memory_order_relaxed)) break;
    }
    bit_ = free & (~free + 1);
    base_ = call.memory + call.plan.slots_at + __builtin_ctzll(bit_) * call.plan.slot_bytes;
    plan_ = &call.plan;
  }
  ~Slot() { mask_.fetch_or(bit_, std::memory_order_release); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  template <class T>
  T* tile() const { return reinterpret_cast<T*>(base_); }
  template <class T>
  T* weights() const { return reinterpret_cast<T*>(base_ + plan_->weights_at); }
  template <class T>
  T* staging() const { return reinterpret_cast<T*>(base_ + plan_->staging_at); }

 private:
  std::atomic<uint64_t>& mask_;
  uint64_t bit_;
  char* base_;
  const Plan* plan_;
};

template <class T>
const BlockKernels<T>& kernels_of(const Call& call);
template <>
const BlockKernels<float>& kernels_of(const Call& call) { return call.kernels->narrow; }
template <>
const BlockKernels<double>& kernels_of(const Call& call) { return call.kernels->wide; }

template <class T>
int64_t block_width(const Plan& plan) { return plan.width * 4 / static_cast<int64_t>(sizeof(T)); }
template <class T>
int64_t row_stride(const Plan& plan) { return plan.stride * 4 / static_cast<int64_t>(sizeof(T)); }

// Calls each(first, count) for the blocks of a chunk.
template <class T, class Each>
void for_blocks(const Plan& plan, int64_t chunk, Each each) {
  const int64_t end = least(plan.l, (chunk + 1) * plan.chunk), width = block_width<T>(plan);
  for (int64_t first = chunk * plan.chunk; first < end; first += width) each(first, least(width, end - first));
}

// ---------------------------------------------------------------- stages of one chunk

// Only for float64 maps, whose squares may leave the range of the type: the largest magnitude, before everything else.
void find_largest(const Call& call, int64_t s, int64_t chunk, const Slot& slot) {
  const auto& kernels = kernels_of<double>(call);
  double largest = 0;
  for_blocks<double>(call.plan, chunk, [&](int64_t first, int64_t count) {
    largest = fmax(largest, kernels.pack(call.layout(), call.input(s), first, count, slot.tile<double>(),
                                         row_stride<double>(call.plan), slot.staging<double>()));
  });
  call.maxima(s)[chunk] = largest;
}

template <class T>
void sum_chunk(const Call& call, int64_t s, int64_t chunk, const Slot& slot) {
  const Plan& plan = call.plan;
  const auto& kernels = kernels_of<T>(call);
  const int64_t stride = row_stride<T>(plan);
  T* tile = slot.tile<T>();
  double* sums = call.sums(s, chunk);
  memset(sums, 0, sizeof(double) * sum_tile(plan.tiles, plan.tiles, plan.tiles));
  double largest = 0;
  for_blocks<T>(plan, chunk, [&](int64_t first, int64_t count) {
    const double peak = kernels.pack(call.layout(), call.input(s), first, count, tile, stride, slot.staging<T>());
    largest = fmax(largest, peak);
    if (isinf(largest) || peak == 0) return;
    double factor = 1;
    // float32 products of this block would overflow, or lose their small terms: scale it by a power of two, which is exact.
    // Only such blocks pay, and no pass over the map is needed beforehand.
    if (sizeof(T) == 4 && (peak > 0x1p50 || peak < 0x1p-20)) factor = to_order_one(peak, 120);
    if (plan.dtype == ASVP_FLOAT64) factor = call.state(s).factor;
    if (factor != 1) kernels.scale(tile, stride, plan.rows, count, static_cast<T>(factor));
    kernels.gram(tile, stride, plan.rows, count, plan.dtype == ASVP_FLOAT64 ? 1 : 1 / (factor * factor), sums);
  });
  if (plan.dtype != ASVP_FLOAT64) call.maxima(s)[chunk] = largest;
}

// The Gram matrix of U^T M for float64 maps, U all left singular vectors as the first solve found them.
void sum_rotated(const Call& call, int64_t s, int64_t chunk, const Slot& slot) {
  const Plan& plan = call.plan;
  const auto& kernels = kernels_of<double>(call);
  const int64_t stride = row_stride<double>(plan);
  double *tile = slot.tile<double>(), *turned = slot.weights<double>(), *sums = call.sums(s, chunk);
  memset(sums, 0, sizeof(double) * sum_tile(plan.tiles, plan.tiles, plan.tiles));
  for_blocks<double>(plan, chunk, [&](int64_t first, int64_t count) {
    kernels.pack(call.layout(), call.input(s), first, count, tile, stride, slot.staging<double>());
    kernels.scale(tile, stride, plan.rows, count, call.state(s).factor);
    kernels.project(tile, stride, plan.c, count, call.part(s, plan.y_at), plan.ld, plan.c, turned);
    memset(turned + plan.c * stride, 0, sizeof(double) * static_cast<size_t>((plan.rows - plan.c) * stride));
    kernels.gram(turned, stride, plan.rows, count, 1, sums);
  });
}

template <class T>
void apply_chunk(const Call& call, int64_t s, int64_t chunk, const Slot& slot) {
  const Plan& plan = call.plan;
  const auto& kernels = kernels_of<T>(call);
  const int64_t stride = row_stride<T>(plan), kept = call.state(s).kept;
  const Layout layout = call.layout();
  T* tile = slot.tile<T>();
  const T* before = reinterpret_cast<const T*>(call.part(s, plan.u_at));
  const T* after = before + plan.c * plan.rank;
  for_blocks<T>(plan, chunk, [&](int64_t first, int64_t count) {
    if (kept < 0) {  // NaN or infinity in the sample
      for (int64_t c = 0; c < plan.c; ++c)
        for (int64_t j = 0; j < count; ++j) tile[c * stride + j] = static_cast<T>(NAN);
      kernels.unpack(layout, tile, stride, first, count, call.output(s), slot.staging<T>());
      return;
    }
    kernels.pack(layout, call.input(s), first, count, tile, stride, slot.staging<T>());
    const bool direct = layout.position_stride == 1 && plan.dtype == (sizeof(T) == 4 ? ASVP_FLOAT32 : ASVP_FLOAT64);
    T* out = direct ? static_cast<T*>(call.output(s)) + first : tile;
    kernels.apply(tile, stride, plan.c, count, before, after, plan.rank, kept, slot.weights<T>(), out,
                  direct ? layout.channel_stride : stride, direct && plan.c * plan.l * call.element_bytes() >= kPastBytes);
    if (!direct) kernels.unpack(layout, tile, stride, first, count, call.output(s), slot.staging<T>());
  });
}

// ---------------------------------------------------------------- stages of one sample

void note_largest(const Call& call, int64_t s) {
  double largest = 0;
  for (int64_t chunk = 0; chunk < call.plan.chunks; ++chunk) largest = fmax(largest, call.maxima(s)[chunk]);
  call.state(s).largest = largest;
}

void choose_factor(const Call& call, int64_t s) {
  note_largest(call, s);
  call.state(s).factor = to_order_one(call.state(s).largest, 1000);
}

// Adds up the chunks, in their order, into `a`: lower triangle and diagonal blocks of 8 (all of it if `whole`), scaled to a
// trace of order 1 so that nothing in the solve leaves float64. Returns the trace.
double collect(const Call& call, int64_t s, bool whole) {
  const Plan& plan = call.plan;
  const int64_t size = sum_tile(plan.tiles, plan.tiles, plan.tiles), ld = plan.ld;
  const double* sums = call.sums(s, 0);
  double *a = call.part(s, plan.a_at), trace = 0;
  for (int64_t i = 0; i < plan.tiles; ++i)
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk)
      for (int64_t d = 0; d < 4; ++d) trace += sums[chunk * size + sum_tile(i, i, plan.tiles) + 5 * d];
  const double factor = to_order_one(trace, 1000);
  for (int64_t row = plan.rows; row < ld; ++row) memset(a + row * ld, 0, sizeof(double) * static_cast<size_t>(ld));
  for (int64_t i = 0; i < plan.tiles; ++i) {
    for (int64_t j = i; j < plan.tiles; ++j) {
      double tile[16] = {};
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        const double* more = sums + chunk * size + sum_tile(i, j, plan.tiles);
        for (int e = 0; e < 16; ++e) tile[e] += more[e];
      }
      double *below = a + 4 * j * ld + 4 * i, *above = a + 4 * i * ld + 4 * j;
      for (int row = 0; row < 4; ++row)
        for (int column = 0; column < 4; ++column) below[row * ld + column] = tile[4 * row + column] * factor;
      if (whole || i / 2 == j / 2)
        for (int row = 0; row < 4; ++row)
          for (int column = 0; column < 4; ++column) above[row * ld + column] = tile[4 * column + row] * factor;
    }
  }
  for (int64_t row = 0; row < plan.rows; ++row)
    for (int64_t column = plan.rows; column < ld; ++column) a[row * ld + column] = 0;
  return trace * factor;
}

// U (and gain - 1 times U) in the type of the arithmetic, from rows of `from`, element (c, t) at c * row + t * column.
template <class T>
void keep_basis(const Call& call, int64_t s, const double* from, int64_t row, int64_t column, const int64_t* order) {
  const Plan& plan = call.plan;
  const State& state = call.state(s);
  T* before = reinterpret_cast<T*>(call.part(s, plan.u_at));
  T* after = before + plan.c * plan.rank;
  const Factors factors = factors_of<T>(state.largest, call.problem->gain);
  for (int64_t c = 0; c < plan.c; ++c)
    for (int64_t t = 0; t < state.kept; ++t) {
      const double value = from[c * row + (order ? order[t] : t) * column];
      before[c * plan.rank + t] = static_cast<T>(value * factors.before);
      after[c * plan.rank + t] = static_cast<T>(value * factors.after);
    }
}

Symmetric eigenproblem(const Call& call, int64_t s) {
  const Plan& plan = call.plan;
  double* work = call.part(s, plan.work_at);
  return {plan.c, plan.ld, call.part(s, plan.a_at), call.part(s, plan.z_at), call.part(s, plan.y_at), work, work + 10 * plan.ld, 0};
}

template <class T>
void solve(const Call& call, int64_t s) {
  const Plan& plan = call.plan;
  State& state = call.state(s);
  const bool second = state.again;
  note_largest(call, s);
  state.again = 0;
  state.kept = -1;
  if (isinf(state.largest)) return;
  const double trace = collect(call, s, false);
  Symmetric problem = eigenproblem(call, s);
  const bool quick = sizeof(T) == 4 && plan.c >= kQuickChannels && call.kernels->leading_quick(problem, plan.rank);
  if (!quick) call.kernels->leading(problem, plan.rank);
  state.kept = count_kept(problem.values, plan.rank, call.problem->energy, trace);
  if (sizeof(T) == 4 && !second && state.kept < plan.c) {
    const int64_t blocks = (plan.l + plan.width - 1) / plan.width;
    state.again = too_blurred(problem.values, state.kept, trace, blocks, call.problem->gain);
    if (state.again) return;
  }
  keep_basis<T>(call, s, problem.y, problem.y_stride, 1, nullptr);
}

void solve_all(const Call& call, int64_t s) {
  State& state = call.state(s);
  state.kept = -1;
  if (isinf(state.largest)) return;
  collect(call, s, false);
  Symmetric problem = eigenproblem(call, s);
  call.kernels->leading(problem, call.plan.c);
  state.kept = 1;
}

// The second half for float64 maps. The rows of B = U^T M are as long as the singular values, and B B^T is nearly diagonal and
// graded: rounding leaves in element (i, j) an error relative to s_i s_j, not to s_1^2, and cyclic Jacobi rotations keep it so
// (Demmel, Veselic, SIAM J. Matrix Anal. Appl. 13, 1992). Together the two steps resolve singular values down to the
// 1e-16 of s_1 that the map itself holds, without a QR factorisation.
void refine(const Call& call, int64_t s) {
  const Plan& plan = call.plan;
  State& state = call.state(s);
  if (state.kept < 0) return;
  const int64_t n = plan.c, ld = plan.ld;
  const double trace = collect(call, s, true);
  double *a = call.part(s, plan.a_at), *vectors = call.part(s, plan.z_at), *y = call.part(s, plan.y_at);
  for (int64_t t = 0; t < n; ++t)
    for (int64_t c = 0; c < n; ++c) vectors[t * ld + c] = y[c * ld + t];
  bool turned = true;
  for (int sweeps = 0; turned && sweeps < 40; ++sweeps) {
    turned = false;
    for (int64_t p = 0; p < n; ++p)
      for (int64_t q = p + 1; q < n; ++q) {
        double *row_p = a + p * ld, *row_q = a + q * ld;
        const double pp = fabs(row_p[p]), qq = fabs(row_q[q]), pq = row_p[q];
        // Below 1e-15 of s_1 there is only rounding, whose directions do not matter.
        if (fmax(pp, qq) <= 1e-30 * trace || fabs(pq) <= 1e-14 * sqrt(pp) * sqrt(qq)) continue;
        turned = true;
        const double angle = (row_q[q] - row_p[p]) / (2 * pq);
        const double t = (angle < 0 ? -1 : 1) / (fabs(angle) + sqrt(angle * angle + 1));
        const double cosine = 1 / sqrt(t * t + 1), sine = t * cosine;
        row_p[p] -= t * pq;
        row_q[q] += t * pq;
        row_p[q] = row_q[p] = 0;
        for (int64_t k = 0; k < n; ++k) {
          if (k != p && k != q) {
            const double x = row_p[k], z = row_q[k];
            a[k * ld + p] = row_p[k] = cosine * x - sine * z;
            a[k * ld + q] = row_q[k] = sine * x + cosine * z;
          }
          const double x = vectors[p * ld + k], z = vectors[q * ld + k];
          vectors[p * ld + k] = cosine * x - sine * z;
          vectors[q * ld + k] = sine * x + cosine * z;
        }
      }
  }
  double* values = call.part(s, plan.work_at);
  int64_t* order = reinterpret_cast<int64_t*>(values + ld);
  double sum = 0;
  for (int64_t t = 0; t < n; ++t) sum += a[t * ld + t];
  for (int64_t t = 0; t < n; ++t) {
    order[t] = t;
    for (int64_t i = t; i > 0 && a[order[i] * ld + order[i]] > a[order[i - 1] * ld + order[i - 1]]; --i) {
      const int64_t moved = order[i];
      order[i] = order[i - 1];
      order[i - 1] = moved;
    }
  }
  for (int64_t t = 0; t < n; ++t) values[t] = a[order[t] * ld + order[t]];
  state.kept = count_kept(values, plan.rank, call.problem->energy, sum);
  // Every rotation rounds, and a hundred leave a vector's length off by some ten units of rounding: U U^T would scale by it.
  for (int64_t i = 0; i < state.kept; ++i) {
    double *vector = vectors + order[i] * ld, squares = 0;
    for (int64_t k = 0; k < n; ++k) squares += vector[k] * vector[k];
    const double scale = 1 / sqrt(squares);
    for (int64_t k = 0; k < n; ++k) vector[k] *= scale;
  }
  keep_basis<double>(call, s, vectors, 1, ld, order);
}

// ---------------------------------------------------------------- the sequence

typedef void (*OnChunk)(const Call&, int64_t s, int64_t chunk, const Slot&);
typedef void (*OnSample)(const Call&, int64_t s);

struct Stage {
  OnChunk on_chunk;    // either this, for every chunk of every sample,
  OnSample on_sample;  // or this, for every sample, after all its chunks
  bool again;          // only for the samples that the solve sent back
};

constexpr Stage kNarrow[] = {{sum_chunk<float>, nullptr, false}, {nullptr, solve<float>, false},
                             {sum_chunk<double>, nullptr, true}, {nullptr, solve<float>, true},
                             {apply_chunk<float>, nullptr, false}, {nullptr, nullptr, false}};
constexpr Stage kHalf[] = {{sum_chunk<double>, nullptr, false}, {nullptr, solve<double>, false},
                           {apply_chunk<double>, nullptr, false}, {nullptr, nullptr, false}};
constexpr Stage kWide[] = {{find_largest, nullptr, false}, {nullptr, choose_factor, false},
                           {sum_chunk<double>, nullptr, false}, {nullptr, solve_all, false},
                           {sum_rotated, nullptr, false}, {nullptr, refine, false},
                           {apply_chunk<double>, nullptr, false}, {nullptr, nullptr, false}};

const Stage* stages_of(asvp_dtype dtype) {
  return dtype == ASVP_FLOAT32 ? kNarrow : dtype == ASVP_FLOAT64 ? kWide : kHalf;
}

struct Job {
  const Call* call;
  const Stage* stage;
};

void run_chunk(void* argument, size_t index) {
  const Job& job = *static_cast<const Job*>(argument);
  const Call& call = *job.call;
  const int64_t i = static_cast<int64_t>(index), s = call.first + i / call.plan.chunks;
  if (job.stage->again && !call.state(s).again) return;
  job.stage->on_chunk(call, s, i % call.plan.chunks, Slot(call));
}

void run_sample(void* argument, size_t index) {
  const Job& job = *static_cast<const Job*>(argument);
  const int64_t s = job.call->first + static_cast<int64_t>(index);
  if (job.stage->again && !job.call->state(s).again) return;
  job.stage->on_sample(*job.call, s);
}

// Small matrices: one task takes a sample through all stages, while it lies in its caches.
void run_small(void* argument, size_t index) {
  const Call& call = *static_cast<const Job*>(argument)->call;
  const int64_t s = call.first + static_cast<int64_t>(index);
  const Slot slot(call);
  for (const Stage* stage = stages_of(call.plan.dtype); stage->on_chunk || stage->on_sample; ++stage) {
    if (stage->again && !call.state(s).again) continue;
    if (stage->on_chunk)
      stage->on_chunk(call, s, 0, slot);
    else
      stage->on_sample(call, s);
  }
}

void run(const Call& call, asvp_task task, int64_t count, Job* job) {
  if (call.parallel_for && count > 1) {
    call.parallel_for(call.host, task, static_cast<size_t>(count), job);
  } else {
    for (int64_t i = 0; i < count; ++i) task(job, static_cast<size_t>(i));
  }
}

void run_wave(const Call& call) {
  for (int64_t s = call.first; s < call.first + call.count; ++s) call.state(s) = {0, 1, -1, 0};
  Job job = {&call, nullptr};
  if (call.plan.chunks == 1) return run(call, run_small, call.count, &job);
  for (const Stage* stage = stages_of(call.plan.dtype); stage->on_chunk || stage->on_sample; ++stage) {
    bool wanted = !stage->again;
    for (int64_t s = call.first; s < call.first + call.count; ++s) wanted = wanted || call.state(s).again;
    if (!wanted) continue;
    job.stage = stage;
    run(call, stage->on_chunk ? run_chunk : run_sample, call.count * (stage->on_chunk ? call.plan.chunks : 1), &job);
  }
}

// ---------------------------------------------------------------- what the processor can do

const Kernels* best_kernels() {
  const char* wanted = getenv("ASVP_CPU_KERNELS");  // for tests: a level by name; one that the processor lacks is ignored
#if defined(ASVP_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const auto asked = [wanted](const Kernels& kernels) { return !wanted || strcmp(wanted, kernels.name) == 0; };
  if (wanted && strcmp(wanted, kPortable.name) == 0) return &kPortable;
  if (avx512 && asked(kAvx512)) return &kAvx512;
  if (avx2 && asked(kAvx2)) return &kAvx2;
  if (avx512) return &kAvx512;
  if (avx2) return &kAvx2;
#else
  (void)wanted;
#endif
  return &kPortable;
}

const Kernels* kernels() {
  static std::atomic<const Kernels*> chosen{nullptr};
  const Kernels* known = chosen.load(std::memory_order_acquire);
  if (!known) chosen.store(known = best_kernels(), std::memory_order_release);
  return known;
}

// Whether an int64_t holds the place of every element, in bytes.
bool reachable(const asvp_problem& p) {
  const int64_t counts[] = {p.n, p.c, p.l}, strides[] = {p.sample_stride, p.channel_stride, p.position_stride};
  int64_t last = 0;
  for (int axis = 0; axis < 3; ++axis) {
    int64_t reach = 0;  // the stride of a single element counts for nothing
    if (counts[axis] > 1 && __builtin_mul_overflow(counts[axis] - 1, strides[axis], &reach)) return false;
    if (__builtin_add_overflow(last, reach, &last)) return false;
  }
  return last < INT64_MAX / 8;
}

}  // namespace
}  // namespace asvp

// ---------------------------------------------------------------- the C ABI

extern "C" {

int asvp_abi_version(void) { return ASVP_ABI_VERSION; }

const char* asvp_cpu_kernels(void) { return asvp::kernels()->name; }

const char* asvp_check(const asvp_problem* problem) {
  if (!problem) return "no problem given";
  const asvp_problem& p = *problem;
  if (p.n < 0 || p.c < 0 || p.l < 0) return "a negative size";
  if (p.dtype < ASVP_FLOAT32 || p.dtype > ASVP_FLOAT64) return "an unknown element type";
  if (p.rank < 1) return "rank must be at least 1";
  if (!(p.gain > 0) || isinf(p.gain)) return "gain must be finite and above 0";
  if (!(p.energy > 0) || p.energy > 1) return "energy must be above 0 and at most 1";
  if (p.c > (1 << 20)) return "more than 1048576 channels";
  if (p.c > 0 && p.l > (INT64_MAX >> 8) / p.c) return "a matrix with more elements than memory can address";
  if (p.n == 0 || p.c == 0 || p.l == 0) return nullptr;
  if ((p.n > 1 && p.sample_stride < 1) || (p.c > 1 && p.channel_stride < 1) || (p.l > 1 && p.position_stride < 1))
    return "strides must be positive";
  if (!asvp::reachable(p)) return "strides that lead out of the address space";
  return nullptr;
}

size_t asvp_workspace_cpu(const asvp_problem* problem) {
  if (asvp_check(problem)) return 0;
  if (problem->n == 0 || problem->c == 0 || problem->l == 0) return 0;
  return static_cast<size_t>(asvp::make_plan(*problem).bytes);
}

asvp_status asvp_perturb_cpu(const asvp_problem* problem, const void* x, void* y, void* workspace, size_t workspace_bytes,
                             asvp_parallel_for parallel_for, void* host) {
  if (asvp_check(problem)) return ASVP_BAD_ARGUMENT;
  if (problem->n == 0 || problem->c == 0 || problem->l == 0) return ASVP_OK;
  if (!x || !y) return ASVP_BAD_ARGUMENT;
  asvp::Call call = {problem, asvp::make_plan(*problem), asvp::kernels(), static_cast<const char*>(x),
                     static_cast<char*>(y), static_cast<char*>(workspace), parallel_for, host, 0, 0};
  if (!workspace || reinterpret_cast<uintptr_t>(workspace) % 64 != 0 ||
      workspace_bytes < static_cast<size_t>(call.plan.bytes))
    return ASVP_BAD_WORKSPACE;
  new (workspace) std::atomic<uint64_t>(call.plan.slots == 64 ? ~uint64_t{0} : (uint64_t{1} << call.plan.slots) - 1);
  for (; call.first < problem->n; call.first += call.count) {
    call.count = asvp::least(call.plan.wave, problem->n - call.first);
    asvp::run_wave(call);
  }
  return ASVP_OK;
}

}  // extern "C"
