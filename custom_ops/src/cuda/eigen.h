// Symmetric eigenproblems in float64, inside one block.
#ifndef ASVP_CUDA_EIGEN_H_
#define ASVP_CUDA_EIGEN_H_

#include "scalar.h"

namespace asvp {
namespace cuda {

// Rows p, q of the i-th pair in round `round` of a tournament of `players` (even): in players - 1 rounds everybody meets
// everybody, and in one round all pairs are apart.
ASVP_HD void meeting(int players, int round, int i, int& p, int& q) {
  const int others = players - 1, a = i == 0 ? others : (round + i) % others, b = (round + others - i) % others;
  p = least(a, b);
  q = most(a, b);
}

struct Turn {
  double cosine, sine, low, high;  // the diagonal elements afterwards
  int active;
};

// Jacobi rotations, all pairs of a round at once: a (n rows of `ld`, in full) becomes diagonal, the rows of v turn with it.
// An element counts as zero under `absolute`, and under `relative` of the geometric mean of its diagonal elements: with the
// latter, graded matrices keep their small eigenvalues to full relative accuracy (Demmel, Veselic, SIAM J. Matrix Anal.
// Appl. 13, 1992). Converges quadratically for every spectrum; the bound on the sweeps is there for what is not finite.
template <class Block>
ASVP_RARE void jacobi(Block& block, int n, int64_t ld, double* a, double* v, int width, Turn* turns, int32_t* turned,
                        double absolute, double relative) {
  if (n < 2) return;
  const int players = n + n % 2, pairs = players / 2;
  for (int sweep = 0; sweep < 40; ++sweep) {
    block.each([&](int t) {
      if (t == 0) *turned = 0;
    });
    for (int round = 0; round < players - 1; ++round) {
      block.each([&](int t) {
        for (int i = t; i < pairs; i += block.size()) {
          int p, q;
          meeting(players, round, i, p, q);
          Turn turn = {1, 0, 0, 0, 0};
          if (q < n) {
            const double pp = a[p * ld + p], qq = a[q * ld + q], pq = a[p * ld + q];
            if (fabs(pq) > absolute && fabs(pq) > relative * sqrt(fabs(pp)) * sqrt(fabs(qq))) {
              const double angle = (qq - pp) / (2 * pq);
              const double tangent = (angle < 0 ? -1 : 1) / (fabs(angle) + sqrt(multiply_add(angle, angle, 1.0)));
              turn.cosine = 1 / sqrt(multiply_add(tangent, tangent, 1.0));
              turn.sine = tangent * turn.cosine;
              turn.low = multiply_add(-tangent, pq, pp);
              turn.high = multiply_add(tangent, pq, qq);
              turn.active = 1;
              *turned = 1;
            }
          }
          turns[i] = turn;
        }
      });
      block.each([&](int t) {  // rows
        for (int e = t; e < pairs * (n + width); e += block.size()) {
          const int i = e / (n + width), k = e % (n + width);
          if (!turns[i].active) continue;
          int p, q;
          meeting(players, round, i, p, q);
          double *one = k < n ? a + p * ld + k : v + p * ld + (k - n), *two = one + (q - p) * ld;
          const double c = turns[i].cosine, s = turns[i].sine, x = *one, z = *two;
          *one = multiply_add(c, x, -multiply(s, z));
          *two = multiply_add(s, x, multiply(c, z));
        }
      });
      block.each([&](int t) {  // columns
        for (int e = t; e < pairs * n; e += block.size()) {
          const int i = e % pairs, k = e / pairs;
          if (!turns[i].active) continue;
          int p, q;
          meeting(players, round, i, p, q);
          double *one = a + k * ld + p, *two = a + k * ld + q;
          const double c = turns[i].cosine, s = turns[i].sine, x = *one, z = *two;
          *one = k == p ? turns[i].low : k == q ? 0 : multiply_add(c, x, -multiply(s, z));
          *two = k == q ? turns[i].high : k == p ? 0 : multiply_add(s, x, multiply(c, z));
        }
      });
    }
    if (!block.uniform(turned)) return;
  }
}

// values[i], order[i]: the i-th largest of the n numbers at diagonal[0], diagonal[step], ..., and where it was.
template <class Block>
ASVP_DEVICE void sort_descending(Block& block, int n, const double* diagonal, int64_t step, double* values, int32_t* order) {
  block.each([&](int t) {
    for (int i = t; i < n; i += block.size()) {
      const double value = diagonal[i * step];
      int place = 0;
      for (int j = 0; j < n; ++j) place += diagonal[j * step] > value || (diagonal[j * step] == value && j < i);
      values[place] = value;
      order[place] = i;
    }
  });
}

// ---------------------------------------------------------------- the leading eigenvectors, by way of a tridiagonal matrix
//
// A direct method at every size: Householder reflections, the wanted eigenvalues by bisection, their vectors by inverse
// iteration, and back through the reflections. Why not a subspace or Lanczos iteration for large C: its time depends on the
// spectrum (flat and clustered ones, common in noise, cost hundreds of steps), and half types need the space wherever s_r -
// s_{r+1} is over 1e-6 s_1, close to what a full solve gives. What is iterated is checked: residuals and orthogonality to
// the last digits, or the tridiagonal matrix goes to Jacobi rotations instead.

// The place of a solve in memory. On the GPU, vectors are shared where n <= 512, and the matrix where it fits as well.
struct Place {
  double* a;  // n rows of `lda`: the matrix, later the reflections
  int64_t lda;
  double *d, *e, *squares, *h, *x, *p, *first, *v, *w, *scalars;
  int32_t* flags;  // most(threads, n + 1)
  // In global memory.
  double *low, *high;  // n + 1
  double* z;           // n rows of `ld`: the vectors
  double* factors;     // n * ld
  double* six;         // `iterated` float64: six vectors for each vector sought; shared where they fit, or the above
  int64_t ld;
  int32_t *order, *turned;
  Turn* turns;
};
constexpr int kHotVectors = 9;
constexpr int kMostSharedVectors = 512;

ASVP_HD int64_t vector_length(int64_t n) { return round_up<int64_t>(n, 32); }
// Rows that start 8 float64 apart in the banks: two of them fill a wave of shared memory.
ASVP_HD int64_t shared_row(int64_t n) { return (n + 7) / 16 * 16 + 8; }
// How many vectors are iterated at a time, and what that takes. No more than fit into n * ld.
ASVP_HD int batch_of(int64_t n, int64_t k) {
  return static_cast<int>(most<int64_t>(1, least(k, round_up<int64_t>(n, 8) / 6)));
}
ASVP_HD int64_t iterated(int64_t n, int64_t k) { return 6 * n * batch_of(n, k); }
ASVP_HD int64_t hot_bytes(int64_t n, int threads) {
  return (kHotVectors * vector_length(n) + 8) * 8 + most<int64_t>(threads, vector_length(n + 1)) * 4;
}

// The sum over c in [0, n) of what term(c, before) adds to `before`, by one warp.
template <class Warp, class Term>
ASVP_DEVICE double warp_sum(const Warp& warp, int n, Term term) {
  typename Warp::template Per<double> sum;
  warp.each([&](int lane) {
    sum[lane] = 0;
    for (int c = lane; c < n; c += kWarp) sum[lane] = term(c, sum[lane]);
  });
  return warp.sum(sum);
}

// The same over c in [first, n) where others wait for it: two chains a lane, and in small matrices every eight lanes take
// them all, which saves two exchanges.
template <class Warp, class Term>
ASVP_DEVICE double urgent_sum(const Warp& warp, int first, int n, Term term) {
  typename Warp::template Per<double> sum;
  const int width = n <= 128 ? 8 : kWarp;
  warp.each([&](int lane) {
    double one = 0, two = 0;
    int c = first + lane % width;
    for (; c + width < n; c += 2 * width) {
      one = term(c, one);
      two = term(c + width, two);
    }
    if (c < n) one = term(c, one);
    sum[lane] = one + two;
  });
  return n <= 128 ? warp.sum_of_eight(sum) : warp.sum(sum);
}

// a = H T H^T; T in d (diagonal) and e, the reflections I - h v v^T in the rows of a. A step takes two phases: first all
// rows but the leading one take the update of the step before and are multiplied by the new row x, while one warp finds the
// length of x; then that warp finds the next update. So a barrier waits for no more than one chain of sums.
template <class Block>
ASVP_DEVICE void tridiagonalise(Block& block, int n, const Place& at) {
  double* a = at.a;
  const int64_t lda = at.lda;
  const int groups = (block.size() / kWarp - 1) * 4;
  block.each([&](int t) {
    for (int c = t; c < n; c += block.size()) {
      at.x[c] = a[c];
      at.v[c] = at.w[c] = 0;
    }
    if (t == 0) at.d[0] = a[0];
  });
  for (int j = 0; j < n - 1; ++j) {
    block.warps([&](auto warp) {
      typedef decltype(warp) Warp;
      typename Warp::template Per<double> sum;
      if (warp.index() == 0) {
        const double others =
            urgent_sum(warp, j + 2, n, [&](int c, double before) { return multiply_add(at.x[c], at.x[c], before); });
        const double pivot = at.x[j + 1], length = multiply_add(pivot, pivot, others);
        const bool needed = others > 1e-290;
        const double root = sqrt(length), value = needed ? (pivot > 0 ? -root : root) : pivot;
        warp.each([&](int lane) {
          if (lane > 0) return;
          at.e[j] = at.scalars[0] = value;
          // Its reciprocal is taken later, beside a chain of sums.
          at.scalars[1] = needed ? multiply_add(-pivot, value, length) : 0;
        });
        return;
      }
      const int start = (j + 1) / 8 * 8;
      for (int row = j + 1; row < n; row += groups) {
        warp.each([&](int lane) {
          const int r = row + (warp.index() - 1) * 4 + lane / 8;
          sum[lane] = 0;
          if (r >= n) return;
          const double vr = at.v[r], wr = at.w[r];
          for (int c = start + lane % 8; c < n; c += 8) {
            if (c <= j) continue;
            const double y = multiply_add(-wr, at.v[c], multiply_add(-vr, at.w[c], a[r * lda + c]));
            a[r * lda + c] = y;
            sum[lane] = multiply_add(y, at.x[c], sum[lane]);
            if (c == j + 1) at.first[r] = y;
          }
        });
        warp.template sum<8>(sum);
        warp.each([&](int lane) {
          const int r = row + (warp.index() - 1) * 4 + lane / 8;
          if (r < n && lane % 8 == 0) at.p[r] = sum[lane];
        });
      }
    });
    if (j == n - 2) break;
    block.warps([&](auto warp) {
      if (warp.index() > 0) return;
      const double value = at.scalars[0], length = at.scalars[1], scale = length > 0 ? 1 / length : 0;
      // A v = A x - value * (column j + 1 of A).
      const auto v_of = [&](int c) { return c == j + 1 ? at.x[c] - value : at.x[c]; };
      const auto product_of = [&](int c) { return multiply_add(-value, at.first[c], at.p[c]); };
      const double half = urgent_sum(warp, j + 1, n, [&](int c, double before) {
                            return multiply_add(v_of(c), product_of(c), before);
                          }) * scale * scale / 2;
      const double v_first = v_of(j + 1), w_first = multiply_add(scale, product_of(j + 1), -multiply(half, v_first));
      warp.each([&](int lane) {
        if (lane == 0) at.h[j] = scale;
        for (int c = j + 1 + lane; c < n; c += kWarp) {
          const double v = v_of(c), w = multiply_add(scale, product_of(c), -multiply(half, v));
          const double next = multiply_add(-w_first, v, multiply_add(-v_first, w, at.first[c]));
          at.v[c] = v;
          at.w[c] = w;
          a[j * lda + c] = v;
          if (c == j + 1)
            at.d[c] = next;
          else
            at.x[c] = next;
        }
      });
    });
  }
  block.each([&](int t) {
    if (t == 0 && n > 1) at.d[n - 1] = at.first[n - 1];
  });
}

// How many eigenvalues of T lie above x: the number of positive pivots of T - x, told from the signs of the leading minors,
// which take one multiplication and one fused addition each instead of a division. `squares`: of e, none of them zero; then
// two minors in a row do not vanish, and the sign of one that does makes no difference. Powers of two keep them in range.
ASVP_HD int count_above(const double* d, const double* squares, int n, double x) {
  double before = 1, minor = d[0] - x;
  int above = minor >= 0;
  for (int i = 1; i < n; ++i) {
    const double next = multiply_add(d[i] - x, minor, -(squares[i - 1] * before));
    above += (next >= 0) == (minor >= 0);
    before = minor;
    minor = next;
    if (i % 16 == 0) {  // a step shrinks the larger of two by 2^-106 at most every other time
      const uint64_t bits = bit_cast<uint64_t>(most(fabs(before), fabs(minor)));
      const double scale = bit_cast<double>((uint64_t{2046} << 52) - (bits & (uint64_t{0x7ff} << 52)));
      before *= scale;
      minor *= scale;
    }
  }
  return above;
}

// The `count` largest eigenvalues, descending, into at.low: every round cuts each interval at as many points as there are
// threads for it.
template <class Block>
ASVP_DEVICE void bisect(Block& block, int n, int count, double norm, const Place& at) {
  const int points = most(1, block.size() / count);
  block.each([&](int t) {
    for (int i = t; i < count; i += block.size()) {
      at.low[i] = -norm;
      at.high[i] = norm;
    }
    for (int i = t; i < n - 1; i += block.size()) at.squares[i] = most(at.e[i] * at.e[i], norm * norm * 0x1p-106);
  });
  const auto cut = [&](int i, int u) {
    return multiply_add(at.high[i] - at.low[i], static_cast<double>(u + 1) / (points + 1), at.low[i]);
  };
  for (double width = 1; width > 0x1p-53; width /= points + 1) {
    block.each([&](int t) {
      for (int i = t / points; i < count; i += block.size() / points)
        if (t / points < block.size() / points)
          at.flags[i * points + t % points] = count_above(at.d, at.squares, n, cut(i, t % points)) > i;
    });
    block.each([&](int t) {
      for (int i = t; i < count; i += block.size()) {
        int below = 0;  // how many of the points lie below the eigenvalue
        for (int u = 0; u < points; ++u)
          if (at.flags[i * points + u]) below = u + 1;
        const double low = below > 0 ? cut(i, below - 1) : at.low[i], high = below < points ? cut(i, below) : at.high[i];
        at.low[i] = low;
        at.high[i] = high;
      }
    });
  }
}

// A number in (-1, 1) that looks like noise.
ASVP_HD double noise(uint32_t i, uint32_t t) {
  uint32_t x = i * 0x9e3779b9u + t * 0x85ebca6bu + 0x2545f491u;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return (static_cast<double>(x) + 0.5) * 0x1p-31 - 1;
}

// Solves (T - value) z = z by elimination with row exchanges, the factors kept for the next time. Arrays with `step` between
// elements: six of them, n long.
ASVP_HD void eliminate(const double* d, const double* e, int n, double value, double least_pivot, double* memory, int step,
                       bool again) {
  double *y = memory, *factor = y + n * step, *swapped = factor + n * step, *inverse = swapped + n * step,
         *upper = inverse + n * step, *upper2 = upper + n * step;
  // What the next step reads is read before this one stores: for all the compiler knows, it is the same memory.
  double right = y[0], below = n > 1 ? y[step] : 0;
  if (again) {
    double m = n > 1 ? factor[0] : 0, swap = n > 1 ? swapped[0] : 0;
    for (int i = 0; i + 1 < n; ++i) {
      const int next = least(i + 2, n - 1) * step, following = least(i + 1, n - 2) * step;
      const double next_below = y[next], next_m = factor[following], next_swap = swapped[following];
      y[i * step] = swap != 0 ? below : right;
      right = swap != 0 ? multiply_add(-m, below, right) : multiply_add(-m, right, below);
      below = next_below;
      m = next_m;
      swap = next_swap;
    }
  } else {
    double u0 = d[0] - value, u1 = n > 1 ? e[0] : 0, c = u1, a = n > 1 ? d[1] - value : 0;
    for (int i = 0; i + 1 < n; ++i) {
      const bool more = i + 2 < n;
      const double b = more ? e[i + 1] : 0, next_a = more ? d[i + 2] - value : 0, next_below = more ? y[(i + 2) * step] : 0;
      const bool swap = fabs(c) > fabs(u0);
      const double pivot = swap ? c : fabs(u0) < least_pivot ? (u0 < 0 ? -least_pivot : least_pivot) : u0;
      const double reciprocal = 1 / pivot, m = (swap ? u0 : c) * reciprocal;
      factor[i * step] = m;
      swapped[i * step] = swap;
      inverse[i * step] = reciprocal;
      upper[i * step] = swap ? a : u1;
      upper2[i * step] = swap ? b : 0;
      y[i * step] = swap ? below : right;
      right = swap ? multiply_add(-m, below, right) : multiply_add(-m, right, below);
      const double next = swap ? multiply_add(-m, a, u1) : multiply_add(-m, u1, a);
      u1 = swap ? -m * b : b;
      u0 = next;
      c = b;
      a = next_a;
      below = next_below;
    }
    inverse[(n - 1) * step] = 1 / (fabs(u0) < least_pivot ? (u0 < 0 ? -least_pivot : least_pivot) : u0);
    upper[(n - 1) * step] = upper2[(n - 1) * step] = 0;
  }
  double one = right * inverse[(n - 1) * step], two = 0;
  struct Row {
    double upper, upper2, inverse, y;
  };
  const auto row_of = [&](int i) { return Row{upper[i * step], upper2[i * step], inverse[i * step], y[i * step]}; };
  Row row = row_of(most(n - 2, 0));
  y[(n - 1) * step] = one;
  for (int i = n - 2; i >= 0; --i) {
    const Row next = row_of(most(i - 1, 0));
    const double z = multiply_add(-row.upper2, two, multiply_add(-row.upper, one, row.y)) * row.inverse;
    y[i * step] = z;
    two = one;
    one = z;
    row = next;
  }
}

// The eigenvectors of T for the values at.low[0 .. k), in the rows of at.z. False: they did not come out to the last digits.
template <class Block>
ASVP_DEVICE bool iterate_inversely(Block& block, int n, int k, double norm, const Place& at) {
  const int batch = batch_of(n, k);
  const int64_t ld = at.ld;
  const double tolerance = norm * norm * n * 0x1p-98;  // of a squared residual: some 10 units of rounding of the norm
  for (int first = 0; first < k; first += batch) {
    const int end = least(k, first + batch), step = end - first;
    bool fine = false;
    block.each([&](int t) {
      for (int e = t; e < step * n; e += block.size()) at.six[e] = noise(e / step, first + e % step);
    });
    for (int turn = 0; turn < 6 && !fine; ++turn) {
      block.each([&](int t) {
        for (int i = t; i < step; i += block.size())
          eliminate(at.d, at.e, n, at.low[first + i], norm * 0x1p-53, at.six + i, step, turn > 0);
      });
      block.warps([&](auto warp) {  // to length 1
        for (int i = warp.index(); i < step; i += block.size() / kWarp) {
          double* z = at.z + (first + i) * ld;
          const double scale = 1 / sqrt(warp_sum(warp, n, [&](int c, double before) {
                                 const double y = at.six[c * step + i];
                                 return multiply_add(y, y, before);
                               }));
          warp.each([&](int lane) {
            for (int c = lane; c < n; c += kWarp) z[c] = at.six[c * step + i] * scale;
          });
        }
      });
      // Away from those before it whose values are near; twice is enough (Kahan; Parlett, The Symmetric Eigenvalue Problem,
      // 6.9).
      int cluster = first;
      for (; cluster > 0 && at.low[cluster - 1] - at.low[cluster] < 1e-3 * norm; --cluster) {
      }
      for (int i = first; i < end; ++i) {
        if (i > first && at.low[i - 1] - at.low[i] >= 1e-3 * norm) cluster = i;
        if (cluster == i) continue;
        double* z = at.z + i * ld;
        for (int twice = 0; twice < 2; ++twice) {
          block.warps([&](auto warp) {
            for (int s = cluster + warp.index(); s < i; s += block.size() / kWarp) {
              const double share = warp_sum(
                  warp, n, [&](int c, double before) { return multiply_add(at.z[s * ld + c], z[c], before); });
              warp.each([&](int lane) {
                if (lane == 0) at.high[s] = share;
              });
            }
          });
          block.each([&](int t) {
            for (int c = t; c < n; c += block.size()) {
              double y = z[c];
              for (int s = cluster; s < i; ++s) y = multiply_add(-at.high[s], at.z[s * ld + c], y);
              z[c] = y;
            }
          });
        }
        block.warps([&](auto warp) {
          if (warp.index() > 0) return;
          const double scale =
              1 / sqrt(warp_sum(warp, n, [&](int c, double before) { return multiply_add(z[c], z[c], before); }));
          warp.each([&](int lane) {
            for (int c = lane; c < n; c += kWarp) z[c] *= scale;
          });
        });
      }
      block.each([&](int t) {
        if (t == 0) *at.turned = 0;
      });
      block.warps([&](auto warp) {
        for (int i = warp.index(); i < step; i += block.size() / kWarp) {
          const double *z = at.z + (first + i) * ld, value = at.low[first + i];
          const double squares = warp_sum(warp, n, [&](int c, double before) {
            double residual = (at.d[c] - value) * z[c];
            if (c > 0) residual = multiply_add(at.e[c - 1], z[c - 1], residual);
            if (c + 1 < n) residual = multiply_add(at.e[c], z[c + 1], residual);
            at.six[c * step + i] = z[c];
            return multiply_add(residual, residual, before);
          });
          warp.each([&](int lane) {
            if (lane == 0 && !(squares <= tolerance)) *at.turned = 1;
          });
        }
      });
      fine = !block.uniform(at.turned) && turn > 0;  // the second turn makes them orthogonal to rounding, too
    }
    if (!fine) return false;
  }
  return true;
}

// z = H z for the rows at.order[0 .. k) of at.z: four reflections at a time, whose ten inner products share the time of one.
// With t_q = h_q v_q . (z - t_0 v_0 - ... - t_(q-1) v_(q-1)), z becomes z - t_0 v_0 - ... - t_3 v_3.
template <class Block>
ASVP_DEVICE void reflect_back(Block& block, int n, int k, const Place& at) {
  block.warps([&](auto warp) {
    typedef decltype(warp) Warp;
    for (int i = warp.index(); i < k; i += block.size() / kWarp) {
      double* z = at.z + at.order[i] * at.ld;
      for (int top = n - 3; top >= 0; top -= 4) {
        const int first = most(top - 3, 0) + 1;
        const auto v = [&](int q, int c) { return top >= q && c > top - q ? at.a[(top - q) * at.lda + c] : 0; };
        typename Warp::template Per<double> dot[4], cross[4][4];
        warp.each([&](int lane) {
          ASVP_UNROLL for (int q = 0; q < 4; ++q) {
            dot[q][lane] = 0;
            ASVP_UNROLL for (int r = 0; r < q; ++r) cross[q][r][lane] = 0;
          }
          for (int c = first / kWarp * kWarp + lane; c < n; c += kWarp) {  // a lane keeps to its own elements
            if (c < first) continue;
            const double y = z[c];
            ASVP_UNROLL for (int q = 0; q < 4; ++q) {
              const double vq = v(q, c);
              dot[q][lane] = multiply_add(vq, y, dot[q][lane]);
              ASVP_UNROLL for (int r = 0; r < q; ++r) cross[q][r][lane] = multiply_add(vq, v(r, c), cross[q][r][lane]);
            }
          }
        });
        double t[4];
        ASVP_UNROLL for (int q = 0; q < 4; ++q) {
          double product = warp.sum(dot[q]);
          ASVP_UNROLL for (int r = 0; r < q; ++r) product = multiply_add(-t[r], warp.sum(cross[q][r]), product);
          t[q] = top >= q ? at.h[top - q] * product : 0;
        }
        warp.each([&](int lane) {
          for (int c = first / kWarp * kWarp + lane; c < n; c += kWarp) {
            if (c < first) continue;
            double y = z[c];
            ASVP_UNROLL for (int q = 0; q < 4; ++q) y = multiply_add(-t[q], v(q, c), y);
            z[c] = y;
          }
        });
      }
    }
  });
}

// The k leading eigenvectors of at.a in the rows at.order[0 .. k) of at.z, and the least(k + 1, n) largest values in at.low.
// `doubtful`, for tests: as if the iteration had failed.
template <class Block>
ASVP_DEVICE void leading(Block& block, int n, int k, const Place& at, bool doubtful = false) {
  tridiagonalise(block, anew(n), at);
  block.each([&](int t) {  // the largest row sum, in two steps
    if (t >= kWarp) return;
    double most_of_mine = 0;
    for (int i = t; i < n; i += kWarp)
      most_of_mine = most(most_of_mine, fabs(at.d[i]) + (i > 0 ? fabs(at.e[i - 1]) : 0) + (i + 1 < n ? fabs(at.e[i]) : 0));
    at.w[t] = most_of_mine;
  });
  double norm = 0;
  for (int i = 0; i < kWarp; ++i) norm = most(norm, at.w[i]);
  bisect(block, anew(n), least(k + 1, n), norm, at);
  block.each([&](int t) {
    for (int i = t; i < k; i += block.size()) at.order[i] = i;
  });
  if (doubtful || !iterate_inversely(block, anew(n), anew(k), norm, at)) {
    block.each([&](int t) {
      for (int e = t; e < n * n; e += block.size()) {
        const int i = e / n, j = e % n;
        at.factors[i * at.ld + j] = i == j ? at.d[i] : i + 1 == j ? at.e[i] : j + 1 == i ? at.e[j] : 0;
        at.z[i * at.ld + j] = i == j;
      }
    });
    jacobi(block, n, at.ld, at.factors, at.z, n, at.turns, at.turned, 0x1p-54 * norm, 0.0);
    sort_descending(block, n, at.factors, at.ld + 1, at.low, at.order);
  }
  reflect_back(block, anew(n), k, at);
}

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_EIGEN_H_
