// y = x + after (before^T x): one read of the map, one write.
//
// A block takes some positions with all their channels, keeps them in shared memory, sums the weights before^T x over slices of
// channels, adds up the slices in a fixed tree, and writes x + after * weights. Blocks go from the map's end to its beginning: the
// Gram pass read the end last, so maps of the size of the L2 cache are read from memory once.
#ifndef ASVP_CUDA_APPLY_H_
#define ASVP_CUDA_APPLY_H_

#include "plan.h"

namespace asvp {
namespace cuda {

template <class E>
struct Apply {
  typedef typename Arithmetic<E>::Type T;
  typedef typename Exact<E>::Type Kept;
  static constexpr int kThreads = kApplyThreads, kBlocks = 2;
  static constexpr int V = sizeof(E) == 8 ? 2 : 4;  // elements that a thread handles at a time

  struct alignas(sizeof(E) * V) Run {
    E v[V];
  };
  struct alignas(16) Four {
    T v[4];
  };

  static ASVP_HD int shared_bytes(const Plan& plan) { return plan.apply_bytes; }
  static ASVP_HD int64_t blocks(const Plan& plan, int64_t samples) { return samples * plan.apply_tiles; }

  template <class Block>
  static ASVP_DEVICE void run(Block& block, const Call& call, int64_t index) {
    // Backwards, over the batch too.
    const int64_t tiles = call.plan.apply_tiles, reversed = call.count * tiles - 1 - index;
    apply(block, call, reversed / tiles, reversed % tiles);
  }

  // V elements side by side in memory from (channel, position): positions, or channels of tokens.
  static ASVP_DEVICE void load(const Plan& plan, const E* map, int64_t c, int64_t j, Run& run) {
    const E* from = map + c * plan.channel_stride + j * plan.position_stride;
    const int64_t left = plan.tokens ? plan.c - c : plan.l - j, step = plan.tokens ? 1 : plan.position_stride;
    if (plan.aligned && left >= V) {
      run = *reinterpret_cast<const Run*>(from);
      return;
    }
    const E zero = {};
    ASVP_UNROLL for (int i = 0; i < V; ++i) run.v[i] = i < left ? from[i * step] : zero;
  }
  static ASVP_DEVICE void store(const Plan& plan, E* map, int64_t c, int64_t j, const Run& run) {
    E* to = map + c * plan.channel_stride + j * plan.position_stride;
    const int64_t left = plan.tokens ? plan.c - c : plan.l - j, step = plan.tokens ? 1 : plan.position_stride;
    if (plan.aligned && left >= V) {
      *reinterpret_cast<Run*>(to) = run;
      return;
    }
    ASVP_UNROLL for (int i = 0; i < V; ++i)
      if (i < left) to[i * step] = run.v[i];
  }

  template <class Block>
  static ASVP_DEVICE void apply(Block& block, const Call& call, int64_t s, int64_t index) {
    const Plan& plan = call.plan;
    const int kept = block.uniform(&call.state(s).kept);
    const int64_t first = index * plan.positions;
    const int count = static_cast<int>(least<int64_t>(plan.positions, plan.l - first)), channels = static_cast<int>(plan.c);
    const E* x = call.input<E>(s);
    E* y = call.output<E>(s);
    Kept* tile = plan.tile_at < 0 ? nullptr : block.template shared<Kept>(plan.tile_at);
    const int stride = plan.tile_stride, width = static_cast<int>(plan.basis_ld), positions = plan.positions;

    // Items of V elements, as they lie in memory.
    const int items_a_row = plan.tokens ? ceil_div(channels, V) : ceil_div(count, V), rows = plan.tokens ? count : channels;
    const auto on_items = [&](int t, auto f) {
      for (int e = t; e < items_a_row * rows; e += block.size()) {
        const int row = e / items_a_row, place = e % items_a_row * V;
        f(plan.tokens ? place : row, plan.tokens ? row : place);
      }
    };
    if (kept <= 0) {  // zero, or NaN
      block.each([&](int t) {
        on_items(t, [&](int c, int j) {
          Run run;
          load(plan, x, c, first + j, run);
          if (kept < 0)
            ASVP_UNROLL for (int i = 0; i < V; ++i) narrow(static_cast<T>(NAN), run.v[i]);
          store(plan, y, c, first + j, run);
        });
      });
      return;
    }
    if (tile)
      block.each([&](int t) {
        on_items(t, [&](int c, int j) {
          Run run;
          load(plan, x, c, first + j, run);
          Kept* to = tile + (plan.tokens ? j * stride + c : c * stride + j);
          const int room = plan.tokens ? channels - c : V;
          ASVP_UNROLL for (int i = 0; i < V; ++i)
            if (i < room) to[i] = widen(run.v[i]);
        });
      });
    const auto element = [&](int c, int j) -> T {
      if (tile) return static_cast<T>(plan.tokens ? tile[j * stride + c] : tile[c * stride + j]);
      if (j >= count) return 0;
      return static_cast<T>(widen(x[c * plan.channel_stride + (first + j) * plan.position_stride]));
    };

    // Weights: V positions by four components a thread, over every `slices`-th channel.
    const T* before = call.before<T>(s);
    T *partial = block.template shared<T>(), *weights = block.template shared<T>(plan.weights_at);
    const int lanes = positions / V, slices = block.size() / lanes;
    struct Sum {
      T w[4][V];
    };
    typename Block::template Per<Sum> sum(block);
    for (int component = 0; component < kept; component += 4) {
      block.each([&](int t) {
        const int j = t % lanes * V, slice = t / lanes;
        ASVP_UNROLL for (int u = 0; u < 4; ++u)
          ASVP_UNROLL for (int i = 0; i < V; ++i) sum[t].w[u][i] = 0;
        if (slice >= slices || j >= count) return;
        for (int c = slice; c < channels; c += slices) {
          const Four basis = *reinterpret_cast<const Four*>(before + c * width + component);
          ASVP_UNROLL for (int i = 0; i < V; ++i) {
            const T value = j + i < count ? element(c, j + i) : 0;
            ASVP_UNROLL for (int u = 0; u < 4; ++u) sum[t].w[u][i] = multiply_add(basis.v[u], value, sum[t].w[u][i]);
          }
        }
      });
      for (int active = slices; active > 1; active = (active + 1) / 2) {
        const int half = (active + 1) / 2, moved = active - half;
        block.each([&](int t) {
          const int slice = t / lanes;
          if (slice < half || slice >= active) return;
          ASVP_UNROLL for (int u = 0; u < 4; ++u)
            ASVP_UNROLL for (int i = 0; i < V; ++i)
              partial[((u * V + i) * moved + slice - half) * lanes + t % lanes] = sum[t].w[u][i];
        });
        block.each([&](int t) {
          const int slice = t / lanes;
          if (slice >= moved) return;
          ASVP_UNROLL for (int u = 0; u < 4; ++u)
            ASVP_UNROLL for (int i = 0; i < V; ++i)
              sum[t].w[u][i] += partial[((u * V + i) * moved + slice) * lanes + t % lanes];
        });
      }
      block.each([&](int t) {
        if (t >= lanes) return;
        ASVP_UNROLL for (int u = 0; u < 4; ++u)
          ASVP_UNROLL for (int i = 0; i < V; ++i) weights[(component + u) * positions + t * V + i] = sum[t].w[u][i];
      });
    }

    const T* after = call.after<T>(s);
    block.each([&](int t) {
      on_items(t, [&](int c, int j) {
        T out[V];
        ASVP_UNROLL for (int i = 0; i < V; ++i)
          out[i] = plan.tokens ? (c + i < channels ? element(c + i, j) : 0) : (j + i < count ? element(c, j + i) : 0);
        for (int component = 0; component < kept; component += 4) {
          Four basis[V];
          ASVP_UNROLL for (int i = 0; i < (plan.tokens ? V : 1); ++i)
            if (c + i < channels) basis[i] = *reinterpret_cast<const Four*>(after + (c + i) * width + component);
          ASVP_UNROLL for (int u = 0; u < 4; ++u) {
            const T* row = weights + (component + u) * positions + j;
            ASVP_UNROLL for (int i = 0; i < V; ++i)
              out[i] = multiply_add(plan.tokens ? basis[i].v[u] : basis[0].v[u], row[plan.tokens ? 0 : i], out[i]);
          }
        }
        Run run;
        ASVP_UNROLL for (int i = 0; i < V; ++i) narrow(out[i], run.v[i]);
        store(plan, y, c, first + j, run);
      });
    });
  }
};

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_APPLY_H_
