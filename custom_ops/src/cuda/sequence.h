// The kernels of a call, in their order. A launcher runs them on a stream (launch.cuh), or block by block on a CPU (the
// tests).
#ifndef ASVP_CUDA_SEQUENCE_H_
#define ASVP_CUDA_SEQUENCE_H_

#include "apply.h"
#include "gram.h"
#include "solve.h"

namespace asvp {
namespace cuda {

template <class E>
constexpr Mode kFirst = sizeof(E) == 4 ? kNarrow : sizeof(E) == 8 ? kTwofold : kWide;

// Both half types take one and the same solve.
template <class E>
using Spectrum = typename Solved<E>::Type;

// Many small matrices: one block takes each through all stages. Two blocks on a multiprocessor leave 96 registers, where the
// kernels of single stages take up to 168, so some values spill; benchmarks/cuda_resources.py counts them. One block would
// leave the multiprocessor idle at each of the solve's many barriers, and the solve takes most of the time. Not measured.
template <class E, bool Tokens>
struct Whole {
  typedef Gram<kFirst<E>, E, Tokens> First;
  typedef Gram<kWide, E, Tokens> Second;  // of float32 maps
  static constexpr int kThreads = kGramThreads, kBlocks = 2;
  static ASVP_HD int shared_bytes(const Plan& plan) {
    const int second = sizeof(E) == 4 ? Second::shared_bytes(plan) : 0;
    return most(most(First::shared_bytes(plan), second),
                most(Solve<Spectrum<E>>::bytes(plan, kSharedBytes, kThreads), Apply<E>::shared_bytes(plan)));
  }
  static ASVP_HD int64_t blocks(const Plan&, int64_t samples) { return samples; }

  template <class Block>
  static ASVP_DEVICE void run(Block& block, const Call& call, int64_t s) {
    if constexpr (sizeof(E) == 8) Peak<E>::find(block, call, s, 0, 1);
    // `anew`: nothing of one stage is worked out, and kept, before another.
    for (int pass = 0; pass < (sizeof(E) == 4 ? 2 : 1); ++pass) {
      const int sample = anew(static_cast<int>(s));
      if (pass == 0) First::sum(block, call, sample, 0, 0, pass);
      if constexpr (sizeof(E) == 4)
        if (pass == 1) Second::sum(block, call, sample, 0, 0, pass);
      Solve<Spectrum<E>>::solve(block, call, anew(sample), pass);
      if (!block.uniform(&call.state(s).again)) break;
    }
    for (int64_t tile = call.plan.apply_tiles - 1; tile >= 0; --tile)
      Apply<E>::template apply_as<Tokens>(block, call, anew(static_cast<int>(s)), tile);
  }
};

template <class E, bool Tokens, class Launcher>
bool enqueue_wave(Launcher& go, Call& call) {
  call.pass = 0;
  bool fine = go.clear(call);
  if (call.plan.whole) return fine && go.template launch<Whole<E, Tokens>>(call);
  if constexpr (sizeof(E) == 8) fine = fine && go.template launch<Peak<E>>(call);
  fine = fine && go.template launch<Gram<kFirst<E>, E, Tokens>>(call) && go.template launch<Solve<Spectrum<E>>>(call);
  if constexpr (sizeof(E) == 4) {
    call.pass = 1;
    fine = fine && go.template launch<Gram<kWide, E, Tokens>>(call) && go.template launch<Solve<Spectrum<E>>>(call);
    call.pass = 0;
  }
  return fine && go.template launch<Apply<E>>(call);
}

template <class E, class Launcher>
bool enqueue(Launcher& go, Call call) {
  for (call.first = 0; call.first < call.plan.n; call.first += call.count) {
    call.count = least(call.plan.wave, call.plan.n - call.first);
    if (!(call.plan.tokens ? enqueue_wave<E, true>(go, call) : enqueue_wave<E, false>(go, call))) return false;
  }
  return true;
}

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_SEQUENCE_H_
