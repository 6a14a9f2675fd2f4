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

// Many small matrices: one block takes each through all stages.
template <class E>
struct Whole {
  static constexpr int kThreads = kGramThreads, kBlocks = 2;
  static ASVP_HD int shared_bytes(const Plan& plan) {
    const int second = sizeof(E) == 4 ? Gram<kWide, E>::shared_bytes(plan) : 0;
    return most(most(Gram<kFirst<E>, E>::shared_bytes(plan), second),
                most(Solve<Spectrum<E>>::bytes(plan, kSharedBytes, kThreads), Apply<E>::shared_bytes(plan)));
  }
  static ASVP_HD int64_t blocks(const Plan&, int64_t samples) { return samples; }

  template <class Block>
  static ASVP_DEVICE void run(Block& block, const Call& call, int64_t s) {
    if constexpr (sizeof(E) == 8) Peak<E>::find(block, call, s, 0, 1);
    Call turn = call;
    for (turn.pass = 0; turn.pass < (sizeof(E) == 4 ? 2 : 1); ++turn.pass) {
      if (turn.pass == 0)
        Gram<kFirst<E>, E>::sum(block, turn, s, 0, 0);
      else if constexpr (sizeof(E) == 4)
        Gram<kWide, E>::sum(block, turn, s, 0, 0);
      Solve<Spectrum<E>>::solve(block, turn, s, turn.pass);
      if (!block.uniform(&call.state(s).again)) break;
    }
    for (int64_t tile = call.plan.apply_tiles - 1; tile >= 0; --tile) Apply<E>::apply(block, call, s, tile);
  }
};

template <class E, class Launcher>
bool enqueue(Launcher& go, Call call) {
  for (call.first = 0; call.first < call.plan.n; call.first += call.count) {
    call.count = least(call.plan.wave, call.plan.n - call.first);
    call.pass = 0;
    bool fine = go.clear(call);
    if (call.plan.whole) {
      fine = fine && go.template launch<Whole<E>>(call);
    } else {
      if constexpr (sizeof(E) == 8) fine = fine && go.template launch<Peak<E>>(call);
      fine = fine && go.template launch<Gram<kFirst<E>, E>>(call) && go.template launch<Solve<Spectrum<E>>>(call);
      if constexpr (sizeof(E) == 4) {
        call.pass = 1;
        fine = fine && go.template launch<Gram<kWide, E>>(call) && go.template launch<Solve<Spectrum<E>>>(call);
        call.pass = 0;
      }
      fine = fine && go.template launch<Apply<E>>(call);
    }
    if (!fine) return false;
  }
  return true;
}

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_SEQUENCE_H_
