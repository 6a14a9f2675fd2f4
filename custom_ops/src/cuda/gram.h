// The Gram matrix M M^T of every sample: one read of the map, sums in a fixed order.
//
// A block takes one pair of channel tiles and every `chunks`-th stage of positions, so that at any time the grid works on
// one contiguous front of the map, and what it read last, which the L2 cache still holds, is the end of it: the apply pass
// starts there. Its sums go to the workspace; the last block to arrive adds them up in the order of the chunks, in two steps
// of about sqrt(chunks) each. Who arrives last changes nothing: no atomic touches a sum.
//
// Why FFMA and not tensor cores for float32: 3xTF32 keeps the products, but the tensor cores' own additions truncate, and a
// bias of 1e-8 to 1e-7 that differs from element to element does not average out over L. docs/concepts/operator.md wants e = 1e-6 of
// the captured energy also where s_r is far below s_1. Here chains of at most 32 products are rounded to nearest, and the
// chains are added without an error that counts, in two float32: as good as float64, and as fast on GPUs whose float64 is
// slow. That leaves at most 1e-7 / sqrt(L / 512) of s_1^2 for maps that vary, what `too_blurred` counts on.
//
// Half types are summed in float64: two units in the last place must hold in every element, also where M and its change
// cancel.
#ifndef ASVP_CUDA_GRAM_H_
#define ASVP_CUDA_GRAM_H_

#include "plan.h"

namespace asvp {
namespace cuda {

template <class E>
constexpr int kVector = 16 / static_cast<int>(sizeof(E));

template <class E>
struct alignas(16) Run {
  E v[kVector<E>];
};

template <int M>
struct Sums;
template <>
struct Sums<kNarrow> {
  typedef float Element;
  float chain[16], high[16], low[16];
};
template <>
struct Sums<kWide> {
  typedef double Element;
  double total[16];
};
template <>
struct Sums<kTwofold> {
  typedef double Element;
  Twofold total[16];
};

// Row and column of sub-tile `sub`. Four neighbours take a square of four, where there is an even number of rows: a load of
// 16 bytes goes through shared memory in half the time where threads t and t ^ 1, or t and t ^ 2, want the same.
ASVP_HD void place_of(const Stage& stage, int sub, int& row, int& column) {
  const int side = stage.quads % 2 ? 1 : 2, inner = sub % (side * side), length = stage.quads / side;
  sub /= side * side;
  row = 0;
  if (stage.tiles == 2) {
    row = sub / length;
    column = sub % length;
  } else {
    for (; sub >= length - row; ++row) sub -= length - row;
    column = row + sub;
  }
  row = row * side + inner % side;
  column = column * side + inner / side;
}

ASVP_HD void tiles_of(const Plan& plan, int pair, int& left, int& right) {
  left = 0;
  for (int length = plan.tiles; pair >= length; --length) {
    pair -= length;
    ++left;
  }
  right = left + pair;
}

ASVP_HD int pair_of(const Plan& plan, int left, int right) { return left * plan.tiles - left * (left + 1) / 2 + right; }

// One atomic a block: thousands on one address would take longer than the sums.
template <class E, class Block, class Peaks>
ASVP_DEVICE void note_peak(Block& block, Peaks& peak, uint64_t* place) {
  typedef typename Magnitude<E>::Bits Bits;
  Bits* all = block.template shared<Bits>();
  const int size = block.size();
  block.each([&](int t) { all[t] = peak[t]; });
  block.each([&](int t) {
    if (t >= kWarp) return;
    for (int i = t + kWarp; i < size; i += kWarp) all[t] = most(all[t], all[i]);
  });
  block.each([&](int t) {
    if (t != 0) return;
    Bits top = 0;
    for (int i = 0; i < kWarp; ++i) top = most(top, all[i]);
    atomic_max(place, top);
  });
}

// Layouts are kernels of their own: with both in one, the compiler keeps what they share in registers, and spills.
template <int M, class E, bool Tokens>
struct Gram {
  typedef typename Sums<M>::Element T;
  typedef typename Magnitude<E>::Bits Bits;
  static constexpr int kThreads = kGramThreads, kBlocks = M == kTwofold ? 1 : 2;
  static constexpr int V = kVector<E>;
  static constexpr int kPass = M == kWide && sizeof(E) == 4;
  static constexpr int kGroup = V < 4 ? V : 4;  // elements of a run in one quad of channels, or with one turn of quads
  // How many runs a thread holds at most, between their loading and their use (a test counts them for every C).
  static constexpr int kRuns = stage_elements(static_cast<Mode>(M)) / V / 256 + (V == 8 ? 1 : 0);

  static ASVP_HD int shared_bytes(const Plan& plan) {
    const Stage diagonal = make_stage(static_cast<Mode>(M), plan.tile, true);
    const int sums = diagonal.subs * 16 * 8 * (M == kTwofold ? 2 : 1);
    const int stage = stage_elements(static_cast<Mode>(M)) * static_cast<int>(sizeof(T));
    // Of two tiles there is one group, or 144 sub-tiles at most: never more than the diagonal's.
    const Stage other = make_stage(static_cast<Mode>(M), plan.tile, false);
    const int others = other.groups > 1 ? other.subs * 16 * 8 * (M == kTwofold ? 2 : 1) : 0;
    return most(most(sums, others), stage);
  }
  static ASVP_HD int64_t blocks(const Plan& plan, int64_t samples) { return samples * plan.chunks * plan.pairs; }

  // A run of V elements: channel `channel`, positions from `position`; tokens: position `position`, channels from `channel`.
  static ASVP_DEVICE void load(const Plan& plan, const E* map, int64_t channel, int64_t position, Run<E>& run) {
    const E zero = {};
    const int64_t here = Tokens ? channel : position, there = Tokens ? position : channel;
    const int64_t end = Tokens ? plan.c : plan.l, limit = Tokens ? plan.l : plan.c;
    if (there >= limit || here >= end) {
      ASVP_UNROLL for (int i = 0; i < V; ++i) run.v[i] = zero;
      return;
    }
    const E* from = map + channel * plan.channel_stride + position * plan.position_stride;
    if (plan.aligned && here + V <= end) {
      run = *reinterpret_cast<const Run<E>*>(from);
      return;
    }
    const int64_t step = Tokens ? 1 : plan.position_stride;
    ASVP_UNROLL for (int i = 0; i < V; ++i) run.v[i] = here + i < end ? from[i * step] : zero;
  }

  // Where element (position k, channel c) of a tile lies in shared memory: positions one after the other, each a row of
  // quads of channels, turned by k / 4 quads: so both the transposing stores and the reads of quads spread over the banks.
  // Of quads of float64 all first halves come before all second ones: a thread reads 16 bytes at a time, its neighbour the
  // next.
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
  struct alignas(16) Piece {
    T v[kPiece];
  };
  static ASVP_HD int place(const Stage& stage, int k, int c) {
    const int turned = c / 4 + k / 4 % stage.quads, quad = turned >= stage.quads ? turned - stage.quads : turned;
    return k * 4 * stage.quads + c % 4 / kPiece * kPiece * stage.quads + quad * kPiece + c % kPiece;
  }

  template <class Block>
  static ASVP_DEVICE void run(Block& block, const Call& call, int64_t index) {
    const Plan& plan = call.plan;
    const int pair = static_cast<int>(index % plan.pairs);
    const int chunk = static_cast<int>(index / plan.pairs % plan.chunks), s = static_cast<int>(index / plan.pairs / plan.chunks);
    if (call.pass == 1 && !call.state(s).again) return;
    sum(block, call, s, chunk, pair, call.pass);
  }

  // What a thread does is the same in every stage, and worked out once: beside 16 products a position, divisions show.
  struct Spot {
    int runs;        // at run `runs % 1024` in every `rows_a_turn`-th row from `runs / 1024`; < 0: none
    int products;    // from position `products / 256`, of quads that lie there at `products / 16 % 16` and `products % 16`;
                     // < 0: none
  };

  // A block's chunk and its tiles, in one register.
  struct Part {
    int packed;
    ASVP_HD int chunk() const { return packed / 65536; }
    ASVP_HD int left() const { return packed / 256 % 256; }
    ASVP_HD int right() const { return packed % 256; }
    ASVP_HD const Stage& stage(const Plan& plan) const { return plan.stages[kPass][left() != right()]; }
  };
  static_assert(kMostChannels <= 256 * 32, "");

  template <class Block>
  static ASVP_DEVICE void sum(Block& block, const Call& call, int s, int chunk, int pair, int pass) {
    const Plan& plan = call.plan;
    int packed;
    {
      int left, right;
      tiles_of(plan, pair, left, right);
      packed = chunk * 65536 + left * 256 + right;
    }
    const auto part = [&] { return Part{anew(packed)}; };
    T* tile = block.template shared<T>();
    const bool regular = plan.aligned && (!Tokens || plan.c % V == 0);
    // Rows: (tile, channel), or for tokens (tile, position).
    const auto rows_of_tile = [&](const Stage& stage) { return Tokens ? stage.span : plan.tile; };
    const int64_t row_step = Tokens ? plan.position_stride : plan.channel_stride;
    double factor = 1;
    if (M == kTwofold) factor = to_order_one(Magnitude<E>::value(static_cast<Bits>(call.state(s).peak)), 1000);

    typename Block::template Per<Spot> spot(block);
    typename Block::template Per<Sums<M>> sums(block);
    typename Block::template Per<Bits> peak(block);
    struct Held {
      Run<E> runs[kRuns];
    };
    typename Block::template Per<Held> held(block);

    const auto load_stage = [&](int t, int at) {
      const int mine = anew(spot[t].runs), run = mine % 1024, row = mine / 1024;
      if (mine < 0) return;
      const Part here = part();
      const Stage& stage = here.stage(plan);
      const int64_t position = int64_t{at} * stage.span;
      const bool whole = regular && position + stage.span <= plan.l;
      const E* map = call.input<E>(anew(s));
      const E* from = map + here.left() * plan.tile * plan.channel_stride + row * row_step + run * V +
                      position * plan.position_stride;
      // What row r of the second tile is further than row r of the first.
      const int64_t second_step = (here.right() - here.left()) * plan.tile * plan.channel_stride - rows_of_tile(stage) * row_step;
      ASVP_UNROLL for (int m = 0; m < kRuns; ++m) {
        const int r = row + m * stage.turn;
        if (r >= stage.tiles * rows_of_tile(stage)) break;
        const bool second = r >= rows_of_tile(stage);
        const int base = (second ? here.right() : here.left()) * plan.tile, inside = second ? r - rows_of_tile(stage) : r;
        const int channel = Tokens ? base + run * V : base + inside;
        Run<E>& to = held[t].runs[m];
        if (whole && channel < plan.c)
          to = *reinterpret_cast<const Run<E>*>(from + m * stage.turn * row_step + (second ? second_step : 0));
        else
          load(plan, map, channel, position + (Tokens ? inside : run * V), to);
      }
    };
    const auto store_stage = [&](int t) {
      const int mine = anew(spot[t].runs), run = mine % 1024, row = mine / 1024;
      if (mine < 0) return;
      const Stage& stage = part().stage(plan);
      ASVP_UNROLL for (int m = 0; m < kRuns; ++m) {
        const int r = row + m * stage.turn;
        if (r >= stage.tiles * rows_of_tile(stage)) break;
        const bool second = r >= rows_of_tile(stage);
        const int inside = second ? r - rows_of_tile(stage) : r;
        ASVP_UNROLL for (int g = 0; g < V; g += kGroup) {
          const int c = Tokens ? run * V + g : inside, k = Tokens ? inside : run * V + g;
          if (Tokens && c >= plan.tile) break;  // a tile need not be whole runs; the channel belongs to the next tile
          T* to = tile + (second ? plan.tile * stage.span : 0) + place(stage, k, c);
          T values[kGroup];
          ASVP_UNROLL for (int i = 0; i < kGroup; ++i) {
            const E x = held[t].runs[m].v[g + i];
            peak[t] = most(peak[t], Magnitude<E>::of(x));
            values[i] = static_cast<T>(widen(x));
            if (M == kTwofold) values[i] = static_cast<T>(values[i] * factor);
          }
          ASVP_UNROLL for (int i = 0; i < kGroup; ++i)
            to[Tokens ? i / kPiece * kPiece * stage.quads + i % kPiece : i * 4 * stage.quads] = values[i];
        }
      }
    };

    block.each([&](int t) {
      peak[t] = 0;
      clear(sums[t]);
      Spot& here = spot[t];
      const Stage& stage = part().stage(plan);
      const int run = t % stage.runs, row = t / stage.runs;
      here.runs = row < stage.turn ? row * 1024 + run : -1;
      int i, j;
      place_of(stage, t % stage.subs, i, j);
      const int group = t / stage.subs, first = group * stage.chain, turn = first / 4 % stage.quads;
      i = (i + turn) % stage.quads;
      j = (j + turn) % stage.quads;
      here.products = group < stage.groups ? first * 256 + i * 16 + j : -1;
      load_stage(t, chunk);
    });
    // Fewer than 2^31 stages: those of two tiles take 16 positions at least, of 33 channels and more.
    const int chunks = static_cast<int>(plan.chunks);
    const auto there = [&](int at) { return int64_t{at} * part().stage(plan).span < plan.l; };
    for (int at = chunk; there(at); at += chunks) {
      block.each([&](int t) { store_stage(t); });
      block.each([&](int t) {
        if (there(at + chunks)) load_stage(t, at + chunks);  // on its way while the products are summed
        const int mine = anew(spot[t].products);
        if (mine < 0) return;
        const Stage& stage = part().stage(plan);
        products(stage, tile, stage.tiles == 2 ? tile + plan.tile * stage.span : tile, mine, sums[t]);
        settle(sums[t]);
      });
    }

    note_peak<E>(block, peak, &call.state(s).peak);
    // One group after the other adds its sums to those before it.
    const Stage& stage = part().stage(plan);
    double* mine = call.sums(s, part().chunk(), pair_of(plan, part().left(), part().right()));
    double* collected = block.template shared<double>();
    for (int g = 0; g < stage.groups; ++g)
      block.each([&](int t) {
        const int thread = anew(t), sub = thread % stage.subs;
        if (thread / stage.subs != g) return;
        double* to = (g + 1 < stage.groups ? collected : mine) + sub;
        const double* from = g > 0 ? collected + sub : nullptr;
        finish(sums[t], from, to, stage.subs);
      });
    reduce(block, call, s, part(), pass);
  }

  // ---------------------------------------------------------------- one thread's sub-tile

  static ASVP_DEVICE void clear(Sums<kNarrow>& sums) {
    ASVP_UNROLL for (int e = 0; e < 16; ++e) sums.high[e] = sums.low[e] = 0;
  }
  static ASVP_DEVICE void clear(Sums<kWide>& sums) {
    ASVP_UNROLL for (int e = 0; e < 16; ++e) sums.total[e] = 0;
  }
  static ASVP_DEVICE void clear(Sums<kTwofold>& sums) {
    ASVP_UNROLL for (int e = 0; e < 16; ++e) sums.total[e] = {0, 0};
  }

  static ASVP_DEVICE void products(const Stage& stage, const T* left, const T* right, int spot, Sums<M>& sums) {
    start(sums);
    const int quads = stage.quads, width = 4 * quads;
    int i = spot / 16 % 16, j = spot % 16;
    const T *at_i = left + spot / 256 * width + kPiece * i, *at_j = right + spot / 256 * width + kPiece * j;
    // The next four positions are turned by one quad more.
    const auto step = [&](const T*& at, int& quad) {
      const bool around = ++quad == quads;
      at += 4 * width + kPiece - (around ? kPiece * quads : 0);
      if (around) quad = 0;
    };
    for (int rest = stage.chain; rest > 0; rest -= 4) {
      ASVP_UNROLL for (int u = 0; u < 4; ++u) {
        Piece a[4 / kPiece], b[4 / kPiece];
        ASVP_UNROLL for (int h = 0; h < 4 / kPiece; ++h) {
          a[h] = *reinterpret_cast<const Piece*>(at_i + u * width + h * kPiece * quads);
          b[h] = *reinterpret_cast<const Piece*>(at_j + u * width + h * kPiece * quads);
        }
        ASVP_UNROLL for (int p = 0; p < 4; ++p)
          ASVP_UNROLL for (int q = 0; q < 4; ++q)
            accumulate(sums, 4 * p + q, a[p / kPiece].v[p % kPiece], b[q / kPiece].v[q % kPiece]);
      }
      step(at_i, i);
      step(at_j, j);
    }
  }

  static ASVP_DEVICE void start(Sums<kNarrow>& sums) {
    ASVP_UNROLL for (int e = 0; e < 16; ++e) sums.chain[e] = 0;
  }
  static ASVP_DEVICE void start(Sums<kWide>&) {}
  static ASVP_DEVICE void start(Sums<kTwofold>&) {}
  static ASVP_DEVICE void accumulate(Sums<kNarrow>& sums, int e, float a, float b) {
    sums.chain[e] = multiply_add(a, b, sums.chain[e]);
  }
  static ASVP_DEVICE void accumulate(Sums<kWide>& sums, int e, double a, double b) {
    sums.total[e] = multiply_add(a, b, sums.total[e]);
  }
  static ASVP_DEVICE void accumulate(Sums<kTwofold>& sums, int e, double a, double b) {
    sums.total[e] = plus_product(sums.total[e], a, b);
  }
  static ASVP_DEVICE void settle(Sums<kNarrow>& sums) {
    ASVP_UNROLL for (int e = 0; e < 16; ++e) {
      const float s = add(sums.high[e], sums.chain[e]), t = add(s, -sums.high[e]);
      sums.low[e] = add(sums.low[e], add(add(sums.high[e], -add(s, -t)), add(sums.chain[e], -t)));
      sums.high[e] = s;
    }
  }
  static ASVP_DEVICE void settle(Sums<kWide>&) {}
  static ASVP_DEVICE void settle(Sums<kTwofold>&) {}

  // Element e of sub-tile q at e * subs + q: neighbours in memory are neighbouring threads.
  template <class S>
  static ASVP_DEVICE void finish(S& sums, const double* from, double* to, int subs) {
    ASVP_UNROLL for (int e = 0; e < 16; ++e) {
      const double sum = total_of(sums, e);
      to[e * subs] = from ? from[e * subs] + sum : sum;
    }
  }
  static ASVP_DEVICE double total_of(const Sums<kNarrow>& sums, int e) {
    return static_cast<double>(anew(sums.high[e])) + static_cast<double>(sums.low[e]);
  }
  static ASVP_DEVICE double total_of(const Sums<kWide>& sums, int e) { return sums.total[e]; }
  static ASVP_DEVICE void finish(Sums<kTwofold>& sums, const double* from, double* to, int subs) {
    const int half = 16 * subs;
    ASVP_UNROLL for (int e = 0; e < 16; ++e) {
      Twofold sum = sums.total[e];
      if (from) sum = plus({from[e * subs], from[half + e * subs]}, sum);
      to[e * subs] = sum.high;
      to[half + e * subs] = sum.low;
    }
  }

  // ---------------------------------------------------------------- over the chunks

  static ASVP_DEVICE Twofold total(const Call& call, int64_t s, int pair, int64_t first, int64_t end, int64_t step, int e,
                                   int half) {
    Twofold sum = {0, 0};
    ASVP_UNROLL_8 for (int64_t chunk = first; chunk < end; chunk += step) {
      const double* part = call.sums(s, chunk, pair);
      if (M == kTwofold)
        sum = plus(sum, {fresh(part + e), fresh(part + half + e)});
      else
        sum.high += fresh(part + e);
    }
    return sum;
  }

  template <class Block>
  static ASVP_DEVICE void reduce(Block& block, const Call& call, int s, Part part, int pass) {
    const Plan& plan = call.plan;
    const Stage& stage = part.stage(plan);
    const int left = part.left(), right = part.right(), chunk = part.chunk(), pair = pair_of(plan, left, right);
    const int64_t fan = plan.fan, bundle = chunk / fan, bundles = ceil_div(plan.chunks, fan), first = bundle * fan;
    const int64_t end = least(plan.chunks, first + fan);
    uint32_t* arrived = call.counters(s, pair, pass);
    const int half = 16 * stage.subs;
    if (!block.last(arrived + 1 + bundle, static_cast<uint32_t>(end - first))) return;
    if (bundles > 1) {
      block.each([&](int t) {
        for (int e = t; e < half; e += block.size()) {
          const Twofold sum = total(call, s, pair, first, end, 1, e, half);
          double* to = call.sums(s, first, pair);
          to[e] = sum.high;
          if (M == kTwofold) to[half + e] = sum.low;
        }
      });
      if (!block.last(arrived, static_cast<uint32_t>(bundles))) return;
    }
    const int64_t step = bundles > 1 ? fan : 1;
    block.each([&](int t) {
      for (int e = t; e < half; e += block.size()) {
        const Twofold sum = total(call, s, pair, 0, plan.chunks, step, e, half);
        int i, j;
        place_of(stage, e % stage.subs, i, j);
        const int p = e / stage.subs / 4, q = e / stage.subs % 4;
        const int64_t row = int64_t{left} * plan.tile + 4 * i + p, column = int64_t{right} * plan.tile + 4 * j + q;
        if (row >= plan.c || column >= plan.c || (left == right && i > j)) continue;
        for (int part = 0; part < (M == kTwofold ? 2 : 1); ++part) {
          double *to = call.square(s, part), value = part ? sum.low : sum.high;
          to[row * plan.ld + column] = value;
          if (left != right || i != j) to[column * plan.ld + row] = value;
        }
      }
    });
  }
};

// The largest magnitude, before everything else: only for float64 maps, whose squares may leave the range of the type.
template <class E>
struct Peak {
  static constexpr int kThreads = 256, kBlocks = 2;
  static ASVP_HD int shared_bytes(const Plan&) { return kThreads * 8; }
  static ASVP_HD int64_t parts(const Plan& plan) { return least<int64_t>(264, ceil_div<int64_t>(plan.c * plan.l, 4096)); }
  static ASVP_HD int64_t blocks(const Plan& plan, int64_t samples) { return samples * parts(plan); }

  template <class Block>
  static ASVP_DEVICE void run(Block& block, const Call& call, int64_t index) {
    find(block, call, index / parts(call.plan), index % parts(call.plan), parts(call.plan));
  }
  template <class Block>
  static ASVP_DEVICE void find(Block& block, const Call& call, int64_t s, int64_t part, int64_t parts) {
    const Plan& plan = call.plan;
    const E* map = call.input<E>(s);
    typename Block::template Per<typename Magnitude<E>::Bits> peak(block);
    block.each([&](int t) {
      peak[t] = 0;
      const int64_t inner = plan.tokens ? plan.c : plan.l, inner_step = plan.tokens ? 1 : plan.position_stride;
      const int64_t outer_step = plan.tokens ? plan.position_stride : plan.channel_stride;
      for (int64_t i = part * block.size() + t; i < plan.c * plan.l; i += parts * block.size())
        peak[t] = most(peak[t], Magnitude<E>::of(map[i / inner * outer_step + i % inner * inner_step]));
    });
    note_peak<E>(block, peak, &call.state(s).peak);
  }
};

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_GRAM_H_
