// What docs/concepts/operator.md ("Correct") asks of one sample, by a decomposition in long double: one-sided Jacobi rotations of the
// rows, which know no overflow here and resolve small singular values beside large ones.
#ifndef ASVP_FUZZ_ORACLE_H_
#define ASVP_FUZZ_ORACLE_H_

#include <math.h>
#include <stdio.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "values.h"

typedef std::vector<std::vector<long double>> Rows;

inline long double dot(const std::vector<long double>& a, const std::vector<long double>& b) {
  long double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

class Decomposed {
 public:
  explicit Decomposed(const Rows& m) : turned_(m), u_(m.size(), std::vector<long double>(m.size())) {
    const size_t c = m.size();
    for (size_t i = 0; i < c; ++i) u_[i][i] = 1;
    bool again = true;
    for (int sweep = 0; again && sweep < 60; ++sweep) {
      again = false;
      for (size_t p = 0; p < c; ++p)
        for (size_t q = p + 1; q < c; ++q) again = rotate(p, q) || again;
    }
    std::vector<std::pair<long double, size_t>> order;
    for (size_t i = 0; i < c; ++i) order.emplace_back(-sqrtl(dot(turned_[i], turned_[i])), i);
    std::sort(order.begin(), order.end());
    for (const auto& entry : order) {
      values.push_back(-entry.first);
      order_.push_back(entry.second);
    }
  }

  // The exact result for r components.
  Rows perturbed(const Rows& m, size_t r, long double gain) const {
    Rows y = m;
    for (size_t t = 0; t < r; ++t) {
      const auto &direction = u_[order_[t]], &along = turned_[order_[t]];
      for (size_t i = 0; i < y.size(); ++i)
        for (size_t j = 0; j < y[i].size(); ++j) y[i][j] += (gain - 1) * direction[i] * along[j];
    }
    return y;
  }

  std::vector<long double> values;  // descending, C of them

 private:
  bool rotate(size_t p, size_t q) {
    const long double pp = dot(turned_[p], turned_[p]), qq = dot(turned_[q], turned_[q]), pq = dot(turned_[p], turned_[q]);
    if (pq == 0 || fabsl(pq) <= 1e-18L * sqrtl(pp) * sqrtl(qq)) return false;
    const long double angle = (qq - pp) / (2 * pq);
    const long double t = (angle < 0 ? -1 : 1) / (fabsl(angle) + sqrtl(angle * angle + 1));
    const long double cosine = 1 / sqrtl(t * t + 1), sine = t * cosine;
    for (Rows* rows : {&turned_, &u_})
      for (size_t j = 0; j < (*rows)[p].size(); ++j) {
        const long double x = (*rows)[p][j], z = (*rows)[q][j];
        (*rows)[p][j] = cosine * x - sine * z;
        (*rows)[q][j] = sine * x + cosine * z;
      }
    return true;
  }

  Rows turned_, u_;  // U^T M, and the columns of U as rows
  std::vector<size_t> order_;
};

struct Question {
  int dtype;
  int64_t rank;
  double gain, energy;
};

// Why y is wrong for the count r, or nothing.
inline std::string against(const Question& question, const Rows& m, const Rows& y, const Decomposed& known, size_t r) {
  const bool half = question.dtype == ASVP_FLOAT16 || question.dtype == ASVP_BFLOAT16, wide = question.dtype == ASVP_FLOAT64;
  const Format format = format_of(question.dtype);
  const long double following = r < known.values.size() ? known.values[r] : 0, last = known.values[r - 1];
  const Rows exact = known.perturbed(m, r, question.gain);
  // Half types, whose Gram matrix is a float64: its rounding E turns u_r by E / (s_r^2 - s_r+1^2), which moves the result by
  // s_r times that. Entries that cancel to less are known no better.
  const long double first = known.values[0], gap = (last - following) * (last + following);
  const long double blur = gap > 0 ? fabsl(question.gain - 1) * 0x1p-52L * first * first * last / gap : 0;
  long double wanted = 0, captured = 0, distance = 0, norm = 0, largest = 0, worst = 0;
  for (size_t t = 0; t < r; ++t) wanted += known.values[t] * known.values[t];
  for (const auto& row : exact)
    for (long double value : row) largest = fmaxl(largest, fabsl(value));
  for (size_t i = 0; i < m.size(); ++i)
    for (size_t j = 0; j < m[i].size(); ++j) {
      const long double change = (y[i][j] - m[i][j]) / (question.gain - 1), off = y[i][j] - exact[i][j];
      captured += change * change;
      distance += off * off;
      norm += exact[i][j] * exact[i][j];
      worst = fmaxl(worst, (fabsl(off) - fmaxl(1e-12L * largest, blur)) / step_at(format, exact[i][j]));
    }
  char text[200] = "";
  const long double energy = fabsl(captured / wanted - 1), far = sqrtl(distance / norm);
  if (half) {
    if (last - following > 1e-6L * first && worst > 2)
      snprintf(text, sizeof(text), "r = %zu: %.2Lf steps off, largest %.3Le, s_1 %.3Le s_r %.3Le s_r+1 %.3Le", r, worst, largest,
               first, last, following);
    return text;
  }
  if (energy > (wide ? 1e-12L : 1e-6L)) snprintf(text, sizeof(text), "r = %zu: captured energy off by %.2Le", r, energy);
  if (last > 0 && (last - following) / last > 1e-2L && far > (wide ? 1e-10L : 1e-5L))
    snprintf(text, sizeof(text), "r = %zu: distance %.2Le, s_1 %.3Le s_r %.3Le s_r+1 %.3Le", r, far, first, last, following);
  return text;
}

// Why y is a wrong answer for m, or nothing. m is finite and not all zero; the gain is at least 0.5 away from 1.
inline std::string wrong(const Question& question, const Rows& m, const Rows& y) {
  const Decomposed known(m);
  const size_t most = std::min({static_cast<size_t>(question.rank), m.size(), m[0].size()});
  const long double slack = question.dtype == ASVP_FLOAT32 ? 1e-6L : 1e-12L;
  long double total = 0;
  for (long double value : known.values) total += value * value;
  std::vector<size_t> counts;
  for (long double shift : {-slack, 0.0L, slack}) {
    size_t r = most;
    if (question.energy < 1) {
      long double covered = 0;
      for (r = 0; r < most && (r == 0 || covered < (question.energy + shift) * total); ++r)
        covered += known.values[r] * known.values[r];
    }
    if (std::find(counts.begin(), counts.end(), r) == counts.end()) counts.push_back(r);
  }
  std::string problems;
  for (size_t r : counts) {
    const std::string problem = against(question, m, y, known, r);
    if (problem.empty()) return "";
    problems += problem + "; ";
  }
  return problems;
}

#endif  // ASVP_FUZZ_ORACLE_H_
