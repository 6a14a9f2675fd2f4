// From the Gram matrix of a sample to its basis: one block a sample, no way back to the host. What decides (the energy
// count, whether float32 sums were enough) is written into the sample's state; later kernels read it and leave at once.
#ifndef ASVP_CUDA_SOLVE_H_
#define ASVP_CUDA_SOLVE_H_

#include "../decide.h"
#include "eigen.h"
#include "plan.h"

namespace asvp {
namespace cuda {

template <class E>
struct Solve {
  typedef typename Magnitude<E>::Bits Bits;
  static constexpr bool kFloat = sizeof(E) == 4, kDouble = sizeof(E) == 8;
  static constexpr int kThreads = kSolveThreads, kBlocks = 1;
  static ASVP_HD int shared_bytes(const Plan& plan) { return bytes(plan, plan.solve_bytes, kThreads); }
  static ASVP_HD int64_t blocks(const Plan&, int64_t samples) { return samples; }

  // What the solve takes of `limit` bytes of shared memory: vectors, the matrix, what the inverse iteration works on, each
  // where it fits beside those before it. The iteration goes through its memory step by step, and would wait for L2.
  struct Share {
    int64_t hot, a, six;  // bytes; 0: in global memory
  };
  static ASVP_HD Share share(const Plan& plan, int limit, int threads) {
    Share s = {plan.c <= kMostSharedVectors ? hot_bytes(plan.c, threads) : 0, plan.c * shared_row(plan.c) * 8,
               iterated(plan.c, plan.rank) * 8};
    if (s.hot > limit) s.hot = 0;
    if (s.hot == 0 || kDouble || s.hot + s.a > limit) s.a = 0;
    if (s.hot == 0 || kDouble || s.hot + s.a + s.six > limit) s.six = 0;
    return s;
  }
  static ASVP_HD int bytes(const Plan& plan, int limit, int threads) {
    const Share s = share(plan, limit, threads);
    return static_cast<int>(s.hot + s.a + s.six);
  }

  template <class Block>
  static ASVP_DEVICE Place place(Block& block, const Call& call, int64_t s) {
    const Plan& plan = call.plan;
    const int64_t length = vector_length(plan.c);
    const Share shared = share(plan, plan.whole ? kSharedBytes : plan.solve_bytes, block.size());
    Place at;
    double* cold = call.vectors(s);
    double* vectors = shared.hot > 0 ? block.template shared<double>() : cold + 8 * length;
    double** names[] = {&at.d, &at.e, &at.squares, &at.h, &at.x, &at.p, &at.first, &at.v, &at.w};
    ASVP_UNROLL for (int i = 0; i < kHotVectors; ++i) *names[i] = vectors + i * length;
    at.scalars = vectors + kHotVectors * length;
    at.flags = reinterpret_cast<int32_t*>(at.scalars + 8);
    const bool inside = shared.a > 0;
    at.a = inside ? block.template shared<double>(shared.hot) : call.square(s, 0);
    at.lda = inside ? shared_row(plan.c) : plan.ld;
    at.low = cold;
    at.high = at.low + length + 8;
    at.order = reinterpret_cast<int32_t*>(at.high + length + 8);
    at.turned = at.order + length;
    at.turns = reinterpret_cast<Turn*>(at.high + 2 * length + 16);
    at.z = call.square(s, kDouble ? 2 : 1);
    at.factors = call.square(s, kDouble ? 3 : 2);
    at.six = shared.six > 0 ? block.template shared<double>(shared.hot + shared.a) : at.factors;
    at.ld = plan.ld;
    return at;
  }

  template <class Block>
  static ASVP_DEVICE double trace_of(Block& block, int n, const double* a, int64_t ld, double* place) {
    block.warps([&](auto warp) {
      if (warp.index() > 0) return;
      const double trace = warp_sum(warp, n, [&](int i, double before) { return before + a[i * ld + i]; });
      warp.each([&](int lane) {
        if (lane == 0) *place = trace;
      });
    });
    return block.uniform(place);
  }

  template <class Block>
  static ASVP_DEVICE void run(Block& block, const Call& call, int64_t index) {
    if (call.pass == 1 && !block.uniform(&call.state(index).again)) return;
    solve(block, call, index, call.pass);
  }

  template <class Block>
  static ASVP_DEVICE void solve(Block& block, const Call& call, int64_t s, int pass) {
    const Plan& plan = call.plan;
    State& state = call.state(s);
    const Bits peak = static_cast<Bits>(block.uniform(&state.peak));
    // float32 products overflow, or lose what matters, beyond these: float64 holds them.
    const bool out_of_range =
        kFloat && pass == 0 && (peak > bit_cast<uint32_t>(0x1p40f) || peak < bit_cast<uint32_t>(0x1p-20f));
    if (peak >= Magnitude<E>::kInfinity || peak == 0 || out_of_range) {
      block.each([&](int t) {
        if (t > 0) return;
        state.kept = peak >= Magnitude<E>::kInfinity ? -1 : 0;
        state.again = peak < Magnitude<E>::kInfinity && peak != 0;
      });
      return;
    }
    const int n = static_cast<int>(plan.c), rank = static_cast<int>(plan.rank);
    const int64_t ld = plan.ld;
    double* a = call.square(s, 0);
    const Place at = place(block, call, s);

    // A trace of order 1, so that nothing here leaves float64.
    double trace = trace_of(block, n, a, ld, at.scalars);
    const double factor = to_order_one(trace, 1000);
    trace *= factor;
    if (kDouble) {
      refine(block, call, s, factor, trace, at);
      trace = trace_of(block, n, a, ld, at.scalars);
      sort_descending(block, n, a, ld + 1, at.low, at.order);
      lengthen(block, n, rank, at);
    } else {
      block.each([&](int t) {
        for (int e = t; e < n * n; e += block.size()) at.a[e / n * at.lda + e % n] = a[e / n * ld + e % n] * factor;
      });
      leading(block, n, rank, at);
    }
    const double* values = at.low;
    const int kept = count_kept(values, rank, call.energy, trace);
    const bool again = kFloat && pass == 0 && kept < plan.c &&
                       too_blurred(values, kept, trace, ceil_div<int64_t>(plan.l, 512), call.gain);  // 512: see gram.h
    block.each([&](int t) {
      if (t > 0) return;
      state.kept = kept;
      state.again = again;
    });
    if (!again) keep_basis(block, call, s, peak, kept, at.z, at.order);
  }

  // The leading vectors to length 1: every rotation rounds, and a few hundred leave the length off by as many units of
  // rounding, by which U U^T would scale.
  template <class Block>
  static ASVP_DEVICE void lengthen(Block& block, int n, int rank, const Place& at) {
    block.warps([&](auto warp) {
      for (int i = warp.index(); i < rank; i += block.size() / kWarp) {
        double* z = at.z + at.order[i] * at.ld;
        const double scale =
            1 / sqrt(warp_sum(warp, n, [&](int c, double before) { return multiply_add(z[c], z[c], before); }));
        warp.each([&](int lane) {
          for (int c = lane; c < n; c += kWarp) z[c] *= scale;
        });
      }
    });
  }

  // U (and gain - 1 times U) in the type of the arithmetic.
  template <class Block>
  static ASVP_DEVICE void keep_basis(Block& block, const Call& call, int64_t s, Bits peak, int kept, const double* vectors,
                                     const int32_t* order) {
    typedef typename Arithmetic<E>::Type T;
    const Plan& plan = call.plan;
    T *before = call.before<T>(s), *after = call.after<T>(s);
    const Factors factors = factors_of<T>(Magnitude<E>::value(peak), call.gain);
    const int width = static_cast<int>(plan.basis_ld);
    block.each([&](int t) {
      for (int e = t; e < plan.c * width; e += block.size()) {
        const int c = e / width, i = e % width;
        const double value = i < kept ? vectors[order[i] * plan.ld + c] : 0;
        before[e] = static_cast<T>(value * factors.before);
        after[e] = static_cast<T>(value * factors.after);
      }
    });
  }

  // float64 maps. Their Gram matrix G comes in two float64 (squares 0 and 1): one would lose what lies below 1e-8 s_1. Its
  // upper half gives rough eigenvectors V, then V G V^T, computed twofold, is nearly diagonal and graded like the singular
  // values, and rotations on that keep the small ones.
  template <class Block>
  static ASVP_DEVICE void refine(Block& block, const Call& call, int64_t s, double factor, double trace, const Place& at) {
    const int n = static_cast<int>(call.plan.c);
    const int64_t ld = call.plan.ld;
    double *high = call.square(s, 0), *low = call.square(s, 1), *v = at.z, *b = call.square(s, 3),
           *b_low = call.square(s, 4);
    block.each([&](int t) {
      for (int e = t; e < n * n; e += block.size()) {
        const int64_t at = e / n * ld + e % n;
        high[at] *= factor;
        low[at] *= factor;
        b[at] = high[at];
        v[at] = e / n == e % n;
      }
    });
    jacobi(block, n, ld, b, v, n, at.turns, at.turned, 0x1p-54 * trace, 0.0);
    block.each([&](int t) {  // b = G V^T
      for (int e = t; e < n * n; e += block.size()) {
        const int i = e / n, j = e % n;
        Twofold sum = {0, 0};
        for (int k = 0; k < n; ++k) sum = plus_product(sum, Twofold{high[k * ld + i], low[k * ld + i]}, v[j * ld + k]);
        b[i * ld + j] = sum.high;
        b_low[i * ld + j] = sum.low;
      }
    });
    block.each([&](int t) {  // V b, rounded
      for (int e = t; e < n * n; e += block.size()) {
        const int i = e / n, j = e % n;
        if (j < i) continue;
        Twofold sum = {0, 0};
        for (int k = 0; k < n; ++k) sum = plus_product(sum, Twofold{b[k * ld + j], b_low[k * ld + j]}, v[i * ld + k]);
        high[i * ld + j] = high[j * ld + i] = sum.high;
      }
    });
    // Below 1e-15 of s_1 there is only rounding, whose directions do not matter.
    jacobi(block, n, ld, high, v, n, at.turns, at.turned, 1e-36 * trace, 1e-14);
  }
};

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_SOLVE_H_
