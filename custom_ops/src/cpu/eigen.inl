// Leading eigenvectors of a symmetric float64 matrix; included by kernels.inl, compiled once for each vector length.
//
// A direct method: Householder tridiagonalisation, the wanted eigenvalues by bisection, then implicit QL whose shifts are
// these values, so that the wanted ones deflate first and the sweeps end after them; only the wanted eigenvectors are carried back
// through the rotations and reflections. Its time does not depend on the spectrum, repeated values need no care, every
// transformation is orthogonal, so the vectors are orthogonal to machine precision whatever the gaps, and it takes 4/3 C^3
// operations. For float32 maps of many channels `leading_quick`, at the end, is tried first. (Block Lanczos is not: it needs
// several times as many vectors in all, and at these sizes the matrix is in the caches.)

namespace asvp {
namespace {

typedef Vec<double> Wide;
constexpr int kWide = kLanes<double>;

// Row group of the sweep below: its broadcast factors stay in registers.
constexpr int kGroup = kWide < 4 ? kWide : 4;

// p = a * next, after the pending update a -= v q^T + q v^T if there is one, in one pass over the lower triangle: the matrix
// goes through the registers once a step instead of twice. Diagonal blocks of kWide x kWide are stored in full, so everything
// is whole vectors; rows and columns past `size` meet zeros in v, q and next.
template <bool kUpdate>
void multiply(double* a, int64_t ld, int64_t size, const double* v, const double* q, const double* next, double* p) {
  for (int64_t j = 0; j < round_up(size, kWide); j += kWide) store(p + j, Wide{});
  for (int64_t block = 0; block < size; block += kWide) {
    for (int64_t r = block; r < block + kWide; r += kGroup) {
      double* row = a + r * ld;
      Wide vr[kGroup], qr[kGroup], nr[kGroup], sum[kGroup] = {};
#pragma GCC unroll 4
      for (int g = 0; g < kGroup; ++g) {
        vr[g] = kUpdate ? broadcast(v[r + g]) : Wide{};
        qr[g] = kUpdate ? broadcast(q[r + g]) : Wide{};
        nr[g] = broadcast(next[r + g]);
      }
      for (int64_t c = 0; c < block; c += kWide) {
        const Wide vc = kUpdate ? load(v + c) : Wide{}, qc = kUpdate ? load(q + c) : Wide{}, nc = load(next + c);
        Wide pc = load(p + c);
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) {
          Wide x = load(row + g * ld + c);
          if constexpr (kUpdate) {
            x = x - vr[g] * qc - qr[g] * vc;
            store(row + g * ld + c, x);
          }
          sum[g] += x * nc;
          pc += x * nr[g];
        }
        store(p + c, pc);
      }
      const Wide vc = kUpdate ? load(v + block) : Wide{}, qc = kUpdate ? load(q + block) : Wide{}, nc = load(next + block);
#pragma GCC unroll 4
      for (int g = 0; g < kGroup; ++g) {
        Wide x = load(row + g * ld + block);
        if constexpr (kUpdate) {
          x = x - vr[g] * qc - qr[g] * vc;
          store(row + g * ld + block, x);
        }
        sum[g] += x * nc;
        p[r + g] += lane_sum<double>(sum[g]);
      }
    }
  }
}

inline double dot(const double* x, const double* y, int64_t size) {
  Wide sum[2] = {};
  int64_t j = 0;
  for (; j + 2 * kWide <= size; j += 2 * kWide) {
    sum[0] += load(x + j) * load(y + j);
    sum[1] += load(x + j + kWide) * load(y + j + kWide);
  }
  if (j < size) sum[0] += load(x + j) * load(y + j);
  return lane_sum<double>(sum[0] + sum[1]);
}

// a -> tridiagonal: diagonal d[0 .. n), d[i] and d[i + 1] coupled by e[i]. Row i of `a` keeps the vector of the reflection
// I - v v^T / h[i] that cleared it (h = 0: none), i from the last row upwards. Vectors of ld elements, all zero past n.
void tridiagonalise(double* a, int64_t n, int64_t ld, double* d, double* e, double* h, double* work) {
  double *v = work, *q = work + ld, *next = work + 2 * ld, *p = work + 3 * ld;
  for (int64_t j = 0; j < 4 * ld; ++j) work[j] = 0;
  for (int64_t i = n - 1; i >= 0; --i) {
    double* row = a + i * ld;
    for (int64_t j = 0; j <= i; ++j) row[j] -= v[i] * q[j] + q[i] * v[j];
    d[i] = row[i];
    h[i] = 0;
    if (i == 0) break;
    v[i] = q[i] = 0;  // row i is done: the sweep below must leave it alone
    next[i] = 0;
    const int64_t last = i - 1, whole = round_up(i, kWide);
    for (int64_t j = 0; j < i; ++j) next[j] = row[j];
    const double pivot = next[last];
    next[last] = 0;
    const double others = dot(next, next, whole), length = others + pivot * pivot;
    e[last] = pivot;
    if (others > 1e-290) {
      const double value = pivot > 0 ? -__builtin_sqrt(length) : __builtin_sqrt(length);
      e[last] = value;
      h[i] = length - pivot * value;
      next[last] = pivot - value;
    }
    if (h[i] == 0)
      for (int64_t j = 0; j < i; ++j) next[j] = 0;
    for (int64_t j = 0; j < i; ++j) row[j] = next[j];
    multiply<true>(a, ld, i, v, q, next, p);
    const double inverse = h[i] > 0 ? 1 / h[i] : 0, half = dot(next, p, whole) * inverse * inverse / 2;
    for (int64_t j = 0; j < whole; j += kWide) {
      store(q + j, load(p + j) * inverse - load(next + j) * half);
      store(v + j, load(next + j));
    }
    for (int64_t j = i; j < whole; ++j) q[j] = 0;
  }
}

// How many eigenvalues of the tridiagonal matrix lie above x, for as many x as a vector has lanes: the number of leading minors
// p of T - x I with the sign of the one before (Sturm). Minors instead of pivots: a division each would be a chain. They
// are brought back to order 1 every eight rows, the scale does not matter; d, e and x are of the order of norm.
inline Wide count_above(const double* d, const double* e, int64_t n, double norm, Wide x) {
  const double unit = norm > 1e-290 ? 1 / norm : 0;
  const Wide shift = x * unit;
  Wide before = {}, minor = broadcast(1.0);
  Bits<double> below = {};
  double square = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Wide following = (d[i] * unit - shift) * minor - square * before;
    below += (reinterpret_cast<Bits<double>>(following) ^ reinterpret_cast<Bits<double>>(minor)) < 0;
    before = minor;
    minor = following;
    square = e[i] * unit * (e[i] * unit) + 1e-60;  // uncoupled rows: no two zeros in sequence
    if (i % 8 == 7) {
      const Wide a = minor < 0.0 ? -minor : minor, b = before < 0.0 ? -before : before, scale = 1.0 / (a > b ? a : b);
      minor *= scale;
      before *= scale;
    }
  }
  Wide above = broadcast(static_cast<double>(n));
  for (int i = 0; i < kWide; ++i) above[i] += static_cast<double>(below[i]);  // -1 for each
  return above;
}

// The `count` largest eigenvalues, descending, to about 2^-35 of the largest, by bisection.
void bisect(const double* d, const double* e, int64_t n, int64_t count, double norm, double* values) {
  for (int64_t first = 0; first < count; first += kWide) {
    Wide low = broadcast(-norm), high = broadcast(norm), index;
    for (int i = 0; i < kWide; ++i) index[i] = static_cast<double>(first + i);
    for (int step = 0; step < 36; ++step) {
      const Wide x = (low + high) * 0.5, above = count_above(d, e, n, norm, x);
      low = above > index ? x : low;
      high = above > index ? high : x;
    }
    for (int64_t i = 0; i < least(kWide, count - first); ++i) values[first + i] = (low[i] + high[i]) / 2;
  }
}

// Whether values[0 .. k), each the eigenvalue of a vector that was found, are the k largest ones, as far as float64 can tell.
// Bisection to 2^-35 may take one for its neighbour.
bool are_largest(const double* d, const double* e, int64_t n, int64_t k, double norm, double* values) {
  for (int64_t first = 0; first < k; first += kWide) {
    Wide x = broadcast(norm);
    for (int64_t i = 0; i < least(kWide, k - first); ++i) x[i] = values[first + i] + 64 * 0x1p-52 * norm;
    const Wide above = count_above(d, e, n, norm, x);
    for (int64_t i = 0; i < least(kWide, k - first); ++i)
      if (above[i] > static_cast<double>(first + i)) return false;
  }
  return true;
}

struct Rotation {
  double c, s;
};

// One implicit QL sweep over rows l .. m, as in EISPACK's tql2 (Bowdler, Martin, Reinsch, Wilkinson, Numer. Math. 11, 1968),
// given the shift. Calls turn(i, c, s) for the rotation of columns i and i + 1.
template <class Turn>
inline void sweep(double* d, double* e, int64_t l, int64_t m, double shift, Turn turn) {
  double g = d[m] - shift, s = 1, c = 1, p = 0;
  for (int64_t i = m - 1; i >= l; --i) {
    const double f = s * e[i], b = c * e[i];
    double r = __builtin_sqrt(f * f + g * g);  // values of order 1 by scaling: no hypot needed
    if (i + 1 < m) e[i + 1] = r;
    if (r < 1e-150) {  // the matrix splits here
      d[i + 1] -= p;
      return;
    }
    s = f / r;
    c = g / r;
    g = d[i + 1] - p;
    r = (d[i] - g) * s + 2 * c * b;
    p = s * r;
    d[i + 1] = g + p;
    g = c * r - b;
    turn(i, c, s);
  }
  d[l] -= p;
  e[l] = g;
}

inline double wilkinson(const double* d, const double* e, int64_t l) {
  const double half = (d[l + 1] - d[l]) / 2, b = e[l], root = __builtin_sqrt(half * half + b * b);
  return d[l] - b * b / (half + (half < 0 ? -root : root));
}

// First row after l that is no longer coupled to the one before it; e counts as zero relative to the whole matrix, which is
// what a backward-stable answer asks for, and ends the work on null spaces at once.
inline int64_t block_end(const double* e, int64_t n, int64_t l, double negligible) {
  int64_t m = l;
  while (m + 1 < n && __builtin_fabs(e[m]) > negligible) ++m;
  return m;
}

constexpr double kNegligible = 0x1p-53;

// All eigenvalues; rows of z (n x ld, starting as the identity) become the eigenvectors.
void all_rotations(double* d, double* e, int64_t n, double* z, int64_t ld, double norm) {
  for (int64_t l = 0; l < n; ++l) {
    for (int tries = 0; tries < 60; ++tries) {
      const int64_t m = block_end(e, n, l, kNegligible * norm);
      if (m == l) break;
      sweep(d, e, l, m, wilkinson(d, e, l), [&](int64_t i, double c, double s) {
        double *one = z + i * ld, *two = one + ld;
        for (int64_t j = 0; j < ld; j += kWide) {
          const Wide x = load(one + j), y = load(two + j);
          store(one + j, c * x - s * y);
          store(two + j, s * x + c * y);
        }
      });
    }
  }
}

// The k values near wanted[0 .. k) only. Fills y (n rows of `y_stride`) with their eigenvectors; false if the storage for rotations
// runs out, which leaves the work to all_rotations. d and e run backwards against the rows of y.
bool some_rotations(double* d, double* e, int64_t n, int64_t k, double* wanted, double norm, Rotation* kept,
                    int32_t* rows, int64_t room, double* y, int64_t y_stride) {
  int64_t used = 0, found = 0;
  bool done[64] = {};
  int64_t place[64];
  const double near = norm * 0x1p-33;
  for (int64_t l = 0; l < n && found < k; ++l) {
    int64_t target = 0;
    while (done[target]) ++target;
    for (int tries = 0;; ++tries) {
      const int64_t m = block_end(e, n, l, kNegligible * norm);
      if (m == l) break;
      if (used + (m - l) > room || tries == 60) return false;
      // The given value draws the right eigenvalue; after that the usual shift converges cubically.
      sweep(d, e, l, m, tries < 2 ? wanted[target] : wilkinson(d, e, l), [&](int64_t i, double c, double s) {
        kept[used] = {c, s};
        rows[used++] = static_cast<int32_t>(i);
      });
    }
    for (int64_t t = 0; t < k; ++t) {
      if (done[t] || __builtin_fabs(d[l] - wanted[t]) > near) continue;
      done[t] = true;
      place[t] = l;
      ++found;
      break;
    }
  }
  if (found < k) return false;
  const int64_t columns = round_up(k, kWide);
  for (int64_t i = 0; i < n * y_stride; ++i) y[i] = 0;
  for (int64_t t = 0; t < k; ++t) {
    y[(n - 1 - place[t]) * y_stride + t] = 1;
    wanted[t] = d[place[t]];
  }
  for (int64_t turn = used - 1; turn >= 0; --turn) {
    const double c = kept[turn].c, s = kept[turn].s;
    double *one = y + (n - 1 - rows[turn]) * y_stride, *two = one - y_stride;
    for (int64_t t = 0; t < columns; t += kWide) {
      const Wide above = load(one + t), below = load(two + t);
      store(one + t, c * above + s * below);
      store(two + t, c * below - s * above);
    }
  }
  return true;
}

// y = H_(n-1) ... H_2 y, the reflections kept in the rows of a.
void reflect_back(const double* a, int64_t n, int64_t ld, const double* h, double* y, int64_t y_stride, int64_t k) {
  for (int64_t i = 2; i < n; ++i) {
    if (h[i] == 0) continue;
    const double *v = a + i * ld, inverse = 1 / h[i];
    for (int64_t t = 0; t < k; t += kWide) {
      Wide sum[4] = {};
      int64_t j = 0;
      for (; j + 4 <= i; j += 4)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) sum[g] += v[j + g] * load(y + (j + g) * y_stride + t);
      for (; j < i; ++j) sum[0] += v[j] * load(y + j * y_stride + t);
      const Wide factor = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * inverse;
      for (j = 0; j < i; ++j) store(y + j * y_stride + t, load(y + j * y_stride + t) - v[j] * factor);
    }
  }
}

// Descending, by insertion: nearly sorted as it comes.
void sort_descending(double* values, int64_t* order, int64_t n) {
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  for (int64_t i = 1; i < n; ++i) {
    const int64_t moved = order[i];
    int64_t j = i;
    for (; j > 0 && values[order[j - 1]] < values[moved]; --j) order[j] = order[j - 1];
    order[j] = moved;
  }
}

void reverse(double* values, int64_t count) {
  for (int64_t i = 0, j = count - 1; i < j; ++i, --j) {
    const double moved = values[i];
    values[i] = values[j];
    values[j] = moved;
  }
}

void leading(Symmetric& problem, int64_t k) {
  const int64_t n = problem.n, ld = problem.ld;
  double *d = problem.work, *e = d + ld, *h = e + ld, *scratch = h + ld, *d_kept = scratch + 4 * ld, *e_kept = d_kept + ld;
  for (int64_t i = 0; i <= n; ++i) problem.values[i] = 0;
  tridiagonalise(problem.a, n, ld, d, e, h, scratch);
  // The reduction starts from the last row, as Lanczos would from the last unit vector, so the leading eigenvectors live near the end
  // of the tridiagonal matrix. QL deflates at the beginning: turned round, it finds them in two or three sweeps each.
  reverse(d, n);
  reverse(e, n - 1);
  double norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double row = __builtin_fabs(d[i]) + (i > 0 ? __builtin_fabs(e[i - 1]) : 0) + (i + 1 < n ? __builtin_fabs(e[i]) : 0);
    norm = row > norm ? row : norm;
  }
  // A tenth of the vectors or more: all of them cost about as much, and more rotations than z can store.
  if (10 * k <= n && k < 64) {
    for (int64_t i = 0; i < n; ++i) {
      d_kept[i] = d[i];
      e_kept[i] = e[i];
    }
    bisect(d, e, n, k + 1, norm, problem.values);
    problem.y_stride = round_up(k, 8);  // side by side in the caches
    const int64_t room = n * ld / 3;  // of the doubles in z: two for a rotation, half of one for its row
    if (some_rotations(d, e, n, k, problem.values, norm, reinterpret_cast<Rotation*>(problem.z),
                       reinterpret_cast<int32_t*>(problem.z + 2 * room), room, problem.y, problem.y_stride) &&
        are_largest(d_kept, e_kept, n, k, norm, problem.values)) {
      reflect_back(problem.a, n, ld, h, problem.y, problem.y_stride, problem.y_stride);
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      d[i] = d_kept[i];
      e[i] = e_kept[i];
    }
  }
  problem.y_stride = ld;
  for (int64_t i = 0; i < n * ld; ++i) problem.z[i] = 0;
  for (int64_t i = 0; i < n; ++i) problem.z[i * ld + i] = 1;
  all_rotations(d, e, n, problem.z, ld, norm);
  int64_t* order = reinterpret_cast<int64_t*>(scratch);
  sort_descending(d, order, n);
  for (int64_t t = 0; t < n; ++t) problem.values[t] = d[order[t]];
  for (int64_t i = 0; i < n; ++i)
    for (int64_t t = 0; t < ld; ++t) problem.y[(n - 1 - i) * ld + t] = t < k ? problem.z[order[t] * ld + i] : 0;
  reflect_back(problem.a, n, ld, h, problem.y, ld, round_up(k, kWide));
}

// ---------------------------------------------------------------- the quick way

// w -= V^T (V w) for the `count` orthonormal rows of V; `twice` where so much cancels that once is not enough (Kahan). Adds
// the last coefficient to *last and returns the length of w.
double orthogonalise(const double* basis, int64_t count, int64_t ld, double* w, double* last) {
  double before = dot(w, w, ld);
  for (int pass = 0;; ++pass) {
    for (int64_t first = 0; first < count; first += 8) {
      // Rows past the last are whatever the memory holds, not numbers perhaps: the last one stands in for them.
      const double* rows[8];
      Wide sum[8] = {}, factor[8];
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) rows[g] = basis + least(first + g, count - 1) * ld;
      for (int64_t j = 0; j < ld; j += kWide) {
        const Wide x = load(w + j);
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) sum[g] += load(rows[g] + j) * x;
      }
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        const double value = first + g < count ? lane_sum<double>(sum[g]) : 0;
        if (first + g == count - 1) *last += value;
        factor[g] = broadcast(value);
      }
      for (int64_t j = 0; j < ld; j += kWide) {
        Wide x = load(w + j);
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) x -= factor[g] * load(rows[g] + j);
        store(w + j, x);
      }
    }
    const double after = dot(w, w, ld);
    if (pass == 1 || after > before * 0x1p-6) return __builtin_sqrt(after);
    before = after;
  }
}

// to = from + left^T right, lower triangle by blocks of kWide, for the `count` rows of left and right.
void add_products(const double* from, double* to, int64_t ld, int64_t size, const double* left, const double* right,
                  int64_t count) {
  constexpr int V = kStripVectors;
  for (int64_t r = 0; r < size; r += kGroup) {
    const int64_t end = round_up(r + kGroup, kWide);
    int64_t c = 0;
    for (; c + V * kWide <= end; c += V * kWide) {
      Wide sum[kGroup][V];
#pragma GCC unroll 4
      for (int g = 0; g < kGroup; ++g)
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) sum[g][i] = load(from + (r + g) * ld + c + i * kWide);
      for (int64_t p = 0; p < count; ++p) {
        Wide x[V];
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) x[i] = load(right + p * ld + c + i * kWide);
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) {
          const Wide factor = broadcast(left[p * ld + r + g]);
#pragma GCC unroll 4
          for (int i = 0; i < V; ++i) sum[g][i] += factor * x[i];
        }
      }
#pragma GCC unroll 4
      for (int g = 0; g < kGroup; ++g)
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) store(to + (r + g) * ld + c + i * kWide, sum[g][i]);
    }
    for (; c < end; c += kWide) {
      Wide sum[kGroup];
#pragma GCC unroll 4
      for (int g = 0; g < kGroup; ++g) sum[g] = load(from + (r + g) * ld + c);
      for (int64_t p = 0; p < count; ++p) {
        const Wide x = load(right + p * ld + c);
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) sum[g] += broadcast(left[p * ld + r + g]) * x;
      }
#pragma GCC unroll 4
      for (int g = 0; g < kGroup; ++g) store(to + (r + g) * ld + c, sum[g]);
    }
  }
}

// Whether a - bound * I has no eigenvalue above zero: it is then -L^T L, taken row by row from the last one, in panels.
bool all_below(double* a, int64_t n, int64_t ld, double bound) {
  constexpr int64_t kPanel = 16;
  for (int64_t i = 0; i < n; ++i) a[i * ld + i] -= bound;
  int64_t end = n;
  while (end > 0) {
    const int64_t begin = end <= kPanel ? 0 : round_up(end - kPanel, 8);
    for (int64_t p = end - 1; p >= begin; --p) {
      double* row = a + p * ld;
      for (int64_t j = 0; j <= p; j += kWide) {
        Wide x = load(row + j);
        for (int64_t q = p + 1; q < end; ++q) x += a[q * ld + p] * load(a + q * ld + j);
        store(row + j, x);
      }
      if (!(row[p] < 0)) return false;
      const Wide inverse = broadcast(-1 / __builtin_sqrt(-row[p]));
      for (int64_t j = 0; j <= p; j += kWide) store(row + j, load(row + j) * inverse);
    }
    add_products(a, a, ld, begin, a + begin * ld, a + begin * ld, end - begin);
    end = begin;
  }
  return true;
}

// Whether s_t and s_(t+1) lie within 0.8e-2, where docs/concepts/operator.md asks for no more than the captured energy.
inline bool is_narrow(const double* values, int64_t t) { return values[t] > 0.985 * values[t - 1]; }

// Lanczos with full orthogonalisation from a fixed vector, until the k leading vectors are good enough for a float32 map, and
// then the proof that they are, which an iteration alone never has (it does not see the second copy of a repeated value).
// With Q the vectors found, theta_t their values, mu a bound near the value behind the last, and phi_t = theta_t - mu + eta:
// if A = G - Q Phi Q^T has no eigenvalue above mu, then G lies under mu I + Q Phi Q^T, so lambda_t <= theta_t + eta for t <= k
// and lambda_(k+1) <= mu, whatever Q is; and theta_t <= lambda_t in any case. With eta = 5e-8 of the mean theta, the
// energy captured is right to 5e-8. The proof is a factorisation of A - mu I in panels, 1/3 C^3 operations, where the direct
// method takes 4/3 C^3 with the matrix streaming past for each row.
//
// Where s_t and s_(t+1) are apart, residuals of norm rho turn Q_t by rho / (theta_t - theta_(t+1)) at most (Davis, Kahan),
// which moves the result by 2 s_t as much, relative to sqrt(sum theta) or more: rho is taken down until that is 1e-6.
//
// False where it has not converged soon or was not proved, with the matrix as it was: the direct method does not mind.
bool leading_quick(Symmetric& problem, int64_t k) {
  const int64_t n = problem.n, ld = problem.ld, limit = n / 8 + 40, stride = round_up(k + 1, 8);
  if (n < 160 || 10 * (k + 1) > n || k >= 32) return false;
  double *alpha = problem.work, *beta = alpha + ld, *d = beta + ld, *e = d + ld, *w = e + ld, *values = problem.values;
  double *basis = problem.z, *rotations = basis + limit * ld;
  double *small = problem.y, *y = small + limit * stride, *left = y + n * stride, *right = left + k * ld;
  const int64_t room = (n - limit) * ld / 3;
  uint64_t random = 1;
  for (int64_t j = 0; j < ld; ++j) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    w[j] = j < n ? static_cast<double>(random >> 40) * 0x1p-23 - 1 : 0;
  }
  double length = __builtin_sqrt(dot(w, w, ld)), largest = 0, slack = 0, bound = 0;
  int64_t m = 0, check = least(limit, 16 + 4 * k);
  for (bool done = false; !done;) {
    double* v = basis + m * ld;
    for (int64_t j = 0; j < ld; ++j) v[j] = w[j] / length;
    multiply<false>(problem.a, ld, n, nullptr, nullptr, v, w);
    for (int64_t j = round_up(n, kWide); j < ld; ++j) w[j] = 0;
    alpha[m] = 0;
    beta[m] = length = orthogonalise(basis, m + 1, ld, w, alpha + m);
    largest = __builtin_fmax(largest, alpha[m++]);
    const bool all = length <= 1e-14 * largest;  // nothing more can be reached from the first vector
    if (m < check && !all) continue;
    if (m <= k) return false;
    double norm = 0;
    for (int64_t i = 0; i < m; ++i) {
      d[i] = alpha[i];
      e[i] = beta[i];
      norm = __builtin_fmax(norm, __builtin_fabs(d[i]) + (i > 0 ? e[i - 1] : 0) + (i + 1 < m ? e[i] : 0));
    }
    bisect(d, e, m, k + 1, norm, values);
    if (!some_rotations(d, e, m, k + 1, values, norm, reinterpret_cast<Rotation*>(rotations),
                        reinterpret_cast<int32_t*>(rotations + 2 * room), room, small, stride))
      return false;
    if (!(values[k - 1] > 0)) return false;
    // Residuals: the last components of the small matrix's vectors, whose rows run backwards.
    double sum = 0, squares = 0;
    for (int64_t t = 0; t < k; ++t) sum += values[t];
    slack = 5e-8 * sum / static_cast<double>(k);
    const double gap = values[k - 1] - values[k];
    bound = is_narrow(values, k) ? values[k - 1] + slack : values[k] + gap / 8;
    sum = 0;
    done = true;
    for (int64_t t = 0; t < k; ++t) {
      squares += length * length * small[t] * small[t];
      sum += values[t];
      const double apart = 4e-7 * (values[t] - values[t + 1]);
      done = done && (all || is_narrow(values, t + 1) || squares * values[t] <= apart * apart * sum);
    }
    const double behind = length * __builtin_fabs(small[k]);
    done = done && (all || (squares <= slack / 4 * (bound - values[k]) && behind <= gap / 4 + slack));
    if (!done && m == limit) return false;
    check = least(limit, m + 8);
  }
  for (int64_t t = 0; t < k; ++t) {
    double* vector = right + t * ld;
    for (int64_t j = 0; j < ld; ++j) vector[j] = 0;
    for (int64_t i = 0; i < m; ++i) {
      const double factor = small[(m - 1 - i) * stride + t];
      for (int64_t j = 0; j < ld; j += kWide) store(vector + j, load(vector + j) + factor * load(basis + i * ld + j));
    }
    for (int64_t j = 0; j < ld; ++j) left[t * ld + j] = (bound - slack - values[t]) * vector[j];
  }
  add_products(problem.a, problem.z, ld, n, left, right, k);  // over the basis
  if (!all_below(problem.z, n, ld, bound)) return false;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t t = 0; t < stride; ++t) y[j * stride + t] = t < k ? right[t * ld + j] : 0;
  for (int64_t t = k + 1; t <= n; ++t) values[t] = 0;
  values[k] = bound;
  problem.y = y;
  problem.y_stride = stride;
  return true;
}

}  // namespace
}  // namespace asvp
