// y = x + after (before^T x): one read of the map, one write.
//
// A block takes some positions with all their channels, keeps them in shared memory, sums the weights before^T x over slices
// of channels, adds up the slices in a fixed tree, and writes x + after * weights. Blocks go from the map's end to its
// beginning: the Gram pass read the end last, so maps of the size of the L2 cache are read from memory once.
#ifndef ASVP_CUDA_APPLY_H_
#define ASVP_CUDA_APPLY_H_

#include "plan.h"

namespace asvp {
namespace cuda {

template <class E>
struct Apply {
  typedef typename Arithmetic<E>::Type T;
  typedef typename Exact<E>::Type Kept;
  static constexpr int kThreads = kApplyThreads, kBlocks = sizeof(E) == 4 ? 3 : 2;
  static constexpr int V = sizeof(E) == 8 ? 2 : 4;  // elements that a thread handles at a time

  struct alignas(sizeof(E) * V) Run {
    E v[V];
  };
  struct alignas(16) Four {
    T v[4];
  };
  struct alignas(16) Values {  // V elements as the tile keeps them
    Kept v[V];
  };
  struct alignas(16) Weights {
    T v[V];
  };

  static ASVP_HD int shared_bytes(const Plan& plan) { return plan.apply_bytes; }
  static ASVP_HD int64_t blocks(const Plan& plan, int64_t samples) { return samples * plan.apply_tiles; }

  template <class Block>
  static ASVP_DEVICE void run(Block& block, const Call& call, int64_t index) {
    // Backwards, over the batch too.
    const int64_t tiles = call.plan.apply_tiles, reversed = call.count * tiles - 1 - index;
    apply(block, call, reversed / tiles, reversed % tiles);
  }

  template <class Block>
  static ASVP_DEVICE void apply(Block& block, const Call& call, int64_t s, int64_t index) {
    if (call.plan.tokens)
      apply_as<true>(block, call, s, index);
    else
      apply_as<false>(block, call, s, index);
  }

  // V elements side by side in memory from (channel, position): positions, or channels of tokens.
  template <bool Tokens>
  static ASVP_DEVICE void load(const Plan& plan, const E* map, int64_t c, int64_t j, Run& run) {
    const E* from = map + c * plan.channel_stride + j * plan.position_stride;
    const int64_t left = Tokens ? plan.c - c : plan.l - j, step = Tokens ? 1 : plan.position_stride;
    if (plan.aligned && left >= V) {
      run = *reinterpret_cast<const Run*>(from);
      return;
    }
    const E zero = {};
    ASVP_UNROLL for (int i = 0; i < V; ++i) run.v[i] = i < left ? from[i * step] : zero;
  }
  template <bool Tokens>
  static ASVP_DEVICE void store(const Plan& plan, E* map, int64_t c, int64_t j, const Run& run) {
    E* to = map + c * plan.channel_stride + j * plan.position_stride;
    const int64_t left = Tokens ? plan.c - c : plan.l - j, step = Tokens ? 1 : plan.position_stride;
    if (plan.aligned && left >= V) {
      *reinterpret_cast<Run*>(to) = run;
      return;
    }
    ASVP_UNROLL for (int i = 0; i < V; ++i)
      if (i < left) to[i * step] = run.v[i];
  }

  template <bool Tokens, class Block>
  static ASVP_DEVICE void apply_as(Block& block, const Call& call, int64_t s, int64_t index) {
    const Plan& plan = call.plan;
    const int kept = block.uniform(&call.state(s).kept);
    const int64_t first = index * plan.positions;
    const int count = static_cast<int>(least<int64_t>(plan.positions, plan.l - first)), channels = static_cast<int>(plan.c);
    const E* x = call.input<E>(s);
    E* y = call.output<E>(s);
    Kept* tile = plan.tile_at < 0 ? nullptr : block.template shared<Kept>(plan.tile_at);
    const int stride = plan.tile_stride, width = static_cast<int>(plan.basis_ld), positions = plan.positions;
    const int lanes = positions / V, slices = block.size() / lanes;

    // A thread's items of V elements, as they lie in memory: its own positions in every `slices`-th channel, so that what it
    // keeps in the tile it reads again itself; or whichever channels of tokens come next.
    const int items_a_row = ceil_div(channels, V);
    const auto on_items = [&](int t, auto f) {
      if (Tokens) {
        for (int e = t; e < items_a_row * count; e += block.size()) f(e % items_a_row * V, e / items_a_row);
      } else if (t % lanes * V < count) {
        for (int c = t / lanes; c < channels && t / lanes < slices; c += slices) f(c, t % lanes * V);
      }
    };
    if (kept <= 0) {  // zero, or NaN
      block.each([&](int t) {
        on_items(t, [&](int c, int j) {
          Run run;
          load<Tokens>(plan, x, c, first + j, run);
          if (kept < 0)
            ASVP_UNROLL for (int i = 0; i < V; ++i) narrow(static_cast<T>(NAN), run.v[i]);
          store<Tokens>(plan, y, c, first + j, run);
        });
      });
      return;
    }
    if (Tokens && tile)
      block.each([&](int t) {
        on_items(t, [&](int c, int j) {
          Run run;
          load<Tokens>(plan, x, c, first + j, run);
          ASVP_UNROLL for (int i = 0; i < V; ++i)
            if (c + i < channels) tile[j * stride + c + i] = widen(run.v[i]);
        });
      });
    // Positions j to j + V of channel c, from the tile or from the map.
    const auto values = [&](int c, int j, Values& to) {
      if (Tokens) {
        ASVP_UNROLL for (int i = 0; i < V; ++i)
          to.v[i] = j + i >= count ? 0
                    : tile         ? tile[(j + i) * stride + c]
                                   : widen(x[c * plan.channel_stride + (first + j + i) * plan.position_stride]);
      } else if (tile) {
        to = *reinterpret_cast<const Values*>(tile + c * stride + j);
      } else {
        Run run;
        load<Tokens>(plan, x, c, first + j, run);
        ASVP_UNROLL for (int i = 0; i < V; ++i) to.v[i] = widen(run.v[i]);
      }
    };

    // Weights: V positions by four components a thread, over every `slices`-th channel.
    const T* before = call.before<T>(s);
    T *partial = block.template shared<T>(), *weights = block.template shared<T>(plan.weights_at);
    struct Sum {
      T w[4][V];
    };
    typename Block::template Per<Sum> sum(block);
    const auto add = [&](Sum& sums, int c, int component, const Values& value) {
      const Four basis = *reinterpret_cast<const Four*>(before + c * width + component);
      ASVP_UNROLL for (int u = 0; u < 4; ++u)
        ASVP_UNROLL for (int i = 0; i < V; ++i)
          sums.w[u][i] = multiply_add(basis.v[u], static_cast<T>(value.v[i]), sums.w[u][i]);
    };
    for (int component = 0; component < kept; component += 4) {
      block.each([&](int t) {
        const int j = t % lanes * V, slice = t / lanes;
        ASVP_UNROLL for (int u = 0; u < 4; ++u)
          ASVP_UNROLL for (int i = 0; i < V; ++i) sum[t].w[u][i] = 0;
        if (slice >= slices || j >= count) return;
        int c = slice;
        if (!Tokens && tile && component == 0) {
          // The one read of the map: several loads on their way before the first is used.
          for (; c + 3 * slices < channels; c += 4 * slices) {
            Run runs[4];
            ASVP_UNROLL for (int m = 0; m < 4; ++m) load<Tokens>(plan, x, c + m * slices, first + j, runs[m]);
            ASVP_UNROLL for (int m = 0; m < 4; ++m) keep(runs[m], tile + (c + m * slices) * stride + j, add, sum[t],
                                                         c + m * slices);
          }
          for (; c < channels; c += slices) {
            Run run;
            load<Tokens>(plan, x, c, first + j, run);
            keep(run, tile + c * stride + j, add, sum[t], c);
          }
        }
        for (; c < channels; c += slices) {
          Values value;
          values(c, j, value);
          add(sum[t], c, component, value);
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
        if (Tokens) {  // channels c to c + V of one position
          ASVP_UNROLL for (int i = 0; i < V; ++i) {
            if (c + i >= channels) {
              out[i] = 0;
              continue;
            }
            out[i] = tile ? tile[j * stride + c + i] : widen(x[c + i + (first + j) * plan.position_stride]);
            for (int component = 0; component < kept; component += 4) {
              const Four basis = *reinterpret_cast<const Four*>(after + (c + i) * width + component);
              ASVP_UNROLL for (int u = 0; u < 4; ++u)
                out[i] = multiply_add(basis.v[u], weights[(component + u) * positions + j], out[i]);
            }
          }
        } else {
          Values value;
          values(c, j, value);
          ASVP_UNROLL for (int i = 0; i < V; ++i) out[i] = value.v[i];
          for (int component = 0; component < kept; component += 4) {
            const Four basis = *reinterpret_cast<const Four*>(after + c * width + component);
            ASVP_UNROLL for (int u = 0; u < 4; ++u) {
              const Weights w = *reinterpret_cast<const Weights*>(weights + (component + u) * positions + j);
              ASVP_UNROLL for (int i = 0; i < V; ++i) out[i] = multiply_add(basis.v[u], w.v[i], out[i]);
            }
          }
        }
        Run run;
        ASVP_UNROLL for (int i = 0; i < V; ++i) narrow(out[i], run.v[i]);
        store<Tokens>(plan, y, c, first + j, run);
      });
    });
  }

  template <class Add, class Sum>
  static ASVP_DEVICE void keep(const Run& run, Kept* to, const Add& add, Sum& sum, int c) {
    Values value;
    ASVP_UNROLL for (int i = 0; i < V; ++i) value.v[i] = widen(run.v[i]);
    *reinterpret_cast<Values*>(to) = value;
    add(sum, c, 0, value);
  }
};

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_APPLY_H_
