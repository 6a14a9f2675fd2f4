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
ASVP_DEVICE void jacobi(Block& block, int n, int64_t ld, double* a, double* v, int width, Turn* turns, int32_t* turned,
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

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_EIGEN_H_
