// The inner loops, written once with the vector extensions of GCC and Clang and compiled once for each vector length.
//
// Everything lies in an anonymous namespace, and no header with inline functions is included: the linker may keep any one of
// several copies of an inline function, and one compiled for AVX-512 must not be what an older processor runs.

#include "kernels.h"

namespace asvp {
namespace {

template <class T>
struct Vectors;
template <>
struct Vectors<float> {
  typedef float Type __attribute__((vector_size(ASVP_VECTOR_BYTES)));
  typedef float Memory __attribute__((vector_size(ASVP_VECTOR_BYTES), may_alias));
  typedef float Loose __attribute__((vector_size(ASVP_VECTOR_BYTES), aligned(1), may_alias));
  typedef int32_t Bits __attribute__((vector_size(ASVP_VECTOR_BYTES)));
  typedef int32_t Bit;
  static constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
};
template <>
struct Vectors<double> {
  typedef double Type __attribute__((vector_size(ASVP_VECTOR_BYTES)));
  typedef double Memory __attribute__((vector_size(ASVP_VECTOR_BYTES), may_alias));
  typedef double Loose __attribute__((vector_size(ASVP_VECTOR_BYTES), aligned(1), may_alias));
  typedef int64_t Bits __attribute__((vector_size(ASVP_VECTOR_BYTES)));
  typedef int64_t Bit;
  static constexpr int64_t kMagnitude = 0x7fffffffffffffff, kInfinity = 0x7ff0000000000000;
};

template <class T>
using Vec = typename Vectors<T>::Type;
template <class T>
using Bits = typename Vectors<T>::Bits;
template <class T>
constexpr int kLanes = ASVP_VECTOR_BYTES / static_cast<int>(sizeof(T));
// Registers: 32 of 64 bytes, else 16 (x86) or 32 (arm64) smaller ones.
constexpr int kTileColumns = ASVP_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kStripVectors = ASVP_VECTOR_BYTES == 64 ? 4 : 2;

template <class T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Vectors<T>::Memory*>(p);
}
template <class T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Vectors<T>::Memory*>(p) = v;
}
template <class T>
inline Vec<T> load_anywhere(const T* p) {
  return *reinterpret_cast<const typename Vectors<T>::Loose*>(p);
}
template <class T>
inline void store_anywhere(T* p, Vec<T> v) {
  *reinterpret_cast<typename Vectors<T>::Loose*>(p) = v;
}
// Past the caches, to an aligned address; `stream_end` before anyone else may read.
template <class T>
inline void stream(T* p, Vec<T> v) {
#if defined(__clang__)
  __builtin_nontemporal_store(v, reinterpret_cast<typename Vectors<T>::Memory*>(p));
#elif ASVP_VECTOR_BYTES == 64
  __builtin_ia32_movntps512(reinterpret_cast<float*>(p), reinterpret_cast<Vec<float>>(v));
#elif ASVP_VECTOR_BYTES == 32
  __builtin_ia32_movntps256(reinterpret_cast<float*>(p), reinterpret_cast<Vec<float>>(v));
#else
  store(p, v);
#endif
}
inline void stream_end() {
#if defined(ASVP_X86)
  __builtin_ia32_sfence();
#endif
}
template <class T>
inline Vec<T> broadcast(T value) {
  return Vec<T>{} + value;
}
template <class T>
inline int64_t padded(int64_t count) {
  return round_up(count, 64 / static_cast<int64_t>(sizeof(T)));
}
template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Exchanges the upper right and lower left blocks of the 2 x 2 pattern of step S: the butterfly behind both the transposition
// and the sum over lanes. Low: lane j is (j & S) ? b[j - S] : a[j]; high: (j & S) ? b[j] : a[j + S].
template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
  typedef Sequence<I...> Type;
};
#if defined(__clang__)
#define ASVP_SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ASVP_SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, Bits<T>{__VA_ARGS__})
#endif
template <class T, int S, int... I>
inline Vec<T> low(Vec<T> a, Vec<T> b, Sequence<I...>) {
  return ASVP_SHUFFLE(T, a, b, ((I & S) ? kLanes<T> + I - S : I)...);
}
template <class T, int S, int... I>
inline Vec<T> high(Vec<T> a, Vec<T> b, Sequence<I...>) {
  return ASVP_SHUFFLE(T, a, b, ((I & S) ? kLanes<T> + I : I + S)...);
}

template <class T, int S = 1>
inline void transpose(Vec<T>* rows) {
  if constexpr (S < kLanes<T>) {
    typename MakeSequence<kLanes<T>>::Type lanes;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & S) continue;
      const Vec<T> a = rows[i], b = rows[i + S];
      rows[i] = low<T, S>(a, b, lanes);
      rows[i + S] = high<T, S>(a, b, lanes);
    }
    transpose<T, 2 * S>(rows);
  }
}

// Lane j of the result: the sum of the lanes of v[j]. A fixed tree, so the bits are the same every time.
template <class T, int S = 1>
inline Vec<T> lane_sums(Vec<T>* v) {
  if constexpr (S < kLanes<T>) {
    typename MakeSequence<kLanes<T>>::Type lanes;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T> / (2 * S); ++i)
      v[i] = low<T, S>(v[2 * i], v[2 * i + 1], lanes) + high<T, S>(v[2 * i], v[2 * i + 1], lanes);
    return lane_sums<T, 2 * S>(v);
  } else {
    return v[0];
  }
}

template <class T>
inline T lane_sum(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}

// ---------------------------------------------------------------- types

inline float from_half(uint16_t h) {
  const uint32_t exponent = (h >> 10) & 31, sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t normal = (static_cast<uint32_t>(h & 0x7fff) << 13) + (exponent == 31 ? 224u << 23 : 112u << 23);
  // Subnormal numbers through an integer, so that a host's flush-to-zero mode does not lose them.
  const uint32_t small = bit_cast<uint32_t>(static_cast<float>(h & 0x3ff) * 0x1p-24f);
  return bit_cast<float>((exponent ? normal : small) | sign);
}
inline float from_brain(uint16_t h) { return bit_cast<float>(static_cast<uint32_t>(h) << 16); }

// To float32, rounded to odd: a further rounding to half is then the one rounding of the float64 value (Boldo, Melquiond,
// IEEE Trans. Comput. 57, 2008).
inline uint32_t odd_bits(double value) {
  const float near = static_cast<float>(value);
  const uint32_t bits = bit_cast<uint32_t>(near);
  const double back = near;
  const bool inexact = back != value, over = __builtin_fabs(back) > __builtin_fabs(value);
  return (bits - (inexact && over ? 1 : 0)) | (inexact ? 1 : 0);
}
inline uint16_t to_half(double value) {
  const uint32_t bits = odd_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Under 2^-14: an integer in steps of 2^-24, rounded by adding 2^23 in float32.
  const float steps = bit_cast<float>(magnitude < 113u << 23 ? magnitude : 0) * 0x1p24f + 0x1p23f;
  const uint32_t small = bit_cast<uint32_t>(steps) - 0x4b000000;
  const uint32_t rounded = magnitude < 113u << 23 ? small : normal;
  const uint32_t limited = magnitude > 0x7f800000 ? 0x7e00 : rounded > 0x7c00 || magnitude >= 0x47800000 ? 0x7c00 : rounded;
  return static_cast<uint16_t>(limited | sign);
}
inline uint16_t to_brain(double value) {
  const uint32_t bits = odd_bits(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// Elements that may lie at any address.
template <class E>
inline E element(const void* base, int64_t index) {
  E value;
  __builtin_memcpy(&value, static_cast<const char*>(base) + index * static_cast<int64_t>(sizeof(E)), sizeof(E));
  return value;
}
template <class E>
inline void put(void* base, int64_t index, E value) {
  __builtin_memcpy(static_cast<char*>(base) + index * static_cast<int64_t>(sizeof(E)), &value, sizeof(E));
}

// A run of `count` elements, `step` apart, between the map's type and the arithmetic's.
template <class T>
void read_run(asvp_dtype dtype, const void* base, int64_t start, int64_t step, int64_t count, T* to) {
#define ASVP_READ(E, convert)                                                                             \
  if (step == 1)                                                                                          \
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(convert(element<E>(base, start + i)));     \
  else                                                                                                    \
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(convert(element<E>(base, start + i * step)))
  switch (dtype) {
    case ASVP_FLOAT32: ASVP_READ(float, ); break;
    case ASVP_FLOAT64: ASVP_READ(double, ); break;
    case ASVP_FLOAT16: ASVP_READ(uint16_t, from_half); break;
    case ASVP_BFLOAT16: ASVP_READ(uint16_t, from_brain); break;
  }
#undef ASVP_READ
}
template <class T>
void write_run(asvp_dtype dtype, void* base, int64_t start, int64_t step, int64_t count, const T* from) {
#define ASVP_WRITE(E, convert)                                                                              \
  if (step == 1)                                                                                            \
    for (int64_t i = 0; i < count; ++i) put<E>(base, start + i, static_cast<E>(convert(from[i])));          \
  else                                                                                                      \
    for (int64_t i = 0; i < count; ++i) put<E>(base, start + i * step, static_cast<E>(convert(from[i])))
  switch (dtype) {
    case ASVP_FLOAT32: ASVP_WRITE(float, ); break;
    case ASVP_FLOAT64: ASVP_WRITE(double, ); break;
    case ASVP_FLOAT16: ASVP_WRITE(uint16_t, to_half); break;
    case ASVP_BFLOAT16: ASVP_WRITE(uint16_t, to_brain); break;
  }
#undef ASVP_WRITE
}

template <class T>
constexpr asvp_dtype kSame = sizeof(T) == 4 ? ASVP_FLOAT32 : ASVP_FLOAT64;

// ---------------------------------------------------------------- pack and unpack

// Largest magnitude as an integer: NaN and infinity sort above every number, and no comparison is unordered.
template <class T>
struct Peak {
  Bits<T> bits = {};
  inline void see(Vec<T> v) {
    const Bits<T> magnitude = reinterpret_cast<Bits<T>>(v) & Vectors<T>::kMagnitude;
    bits = magnitude > bits ? magnitude : bits;
  }
  double value() const {
    typename Vectors<T>::Bit top = 0;
    for (int i = 0; i < kLanes<T>; ++i) top = bits[i] > top ? bits[i] : top;
    return top >= Vectors<T>::kInfinity ? __builtin_inf() : static_cast<double>(bit_cast<T>(top));
  }
};

template <class T>
void pack_rows(const Layout& at, const void* sample, int64_t first, int64_t count, T* tile, int64_t width, Peak<T>& peak) {
  const int64_t whole = padded<T>(count);
  for (int64_t c = 0; c < at.channels; ++c) {
    T* row = tile + c * width;
    const int64_t start = c * at.channel_stride + first * at.position_stride;
    int64_t j = 0;
    if (at.dtype == kSame<T> && at.position_stride == 1) {
      const T* from = static_cast<const T*>(sample) + start;
      // The processor's own prefetcher starts anew with every row; this one is two rows ahead.
      const T* later = from + (c + 2 < at.channels ? 2 * at.channel_stride : 0);
      for (; j + kLanes<T> <= count; j += kLanes<T>) {
        __builtin_prefetch(later + j);
        const Vec<T> v = load_anywhere(from + j);
        peak.see(v);
        store(row + j, v);
      }
      read_run(at.dtype, sample, start + j, 1, count - j, row + j);
    } else {
      read_run(at.dtype, sample, start, at.position_stride, count, row);
    }
    for (int64_t i = count; i < whole; ++i) row[i] = 0;
    for (; j < whole; j += kLanes<T>) peak.see(load(row + j));
  }
}

// Tokens: positions lie `position_stride` apart, the channels of one side by side. As many positions as a vector has lanes
// are transposed at a time.
template <class T>
void pack_tokens(const Layout& at, const void* sample, int64_t first, int64_t count, T* tile, int64_t width, T* staging,
                 Peak<T>& peak) {
  constexpr int W = kLanes<T>;
  const int64_t whole = padded<T>(count), stride = round_up(at.channels, 16);
  for (int64_t j = 0; j < whole; j += W) {
    for (int64_t p = 0; p < W; ++p) {
      T* row = staging + p * stride;
      const int64_t used = j + p < count ? at.channels : 0;
      if (used) read_run(at.dtype, sample, (first + j + p) * at.position_stride, 1, used, row);
      for (int64_t c = used; c < stride; ++c) row[c] = 0;
    }
    for (int64_t c = 0; c < at.channels; c += W) {
      Vec<T> block[W];
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        block[p] = load(staging + p * stride + c);
        peak.see(block[p]);
      }
      transpose<T>(block);
      const int64_t rows = least(W, at.channels - c);
      if (rows == W) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(tile + (c + i) * width + j, block[i]);
      } else {
        for (int64_t i = 0; i < rows; ++i) store(tile + (c + i) * width + j, block[i]);
      }
    }
  }
}

template <class T>
double pack(const Layout& at, const void* sample, int64_t first, int64_t count, T* tile, int64_t width, T* staging) {
  Peak<T> peak;
  if (at.channel_stride == 1 && at.position_stride != 1)
    pack_tokens(at, sample, first, count, tile, width, staging, peak);
  else
    pack_rows(at, sample, first, count, tile, width, peak);
  for (int64_t c = at.channels; c < round_up(at.channels, 4); ++c)
    for (int64_t j = 0; j < padded<T>(count); j += kLanes<T>) store(tile + c * width + j, Vec<T>{});
  return peak.value();
}

template <class T>
void unpack(const Layout& at, const T* tile, int64_t width, int64_t first, int64_t count, void* sample, T* staging) {
  if (at.channel_stride != 1 || at.position_stride == 1) {
    for (int64_t c = 0; c < at.channels; ++c)
      write_run(at.dtype, sample, c * at.channel_stride + first * at.position_stride, at.position_stride, count,
                tile + c * width);
    return;
  }
  constexpr int W = kLanes<T>;
  const int64_t stride = round_up(at.channels, 16);
  for (int64_t j = 0; j < count; j += W) {
    for (int64_t c = 0; c < at.channels; c += W) {
      Vec<T> block[W];
      const int64_t rows = least(W, at.channels - c);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = i < rows ? load(tile + (c + i) * width + j) : Vec<T>{};
      transpose<T>(block);
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) store(staging + p * stride + c, block[p]);
    }
    for (int64_t p = 0; p < least(W, count - j); ++p)
      write_run(at.dtype, sample, (first + j + p) * at.position_stride, 1, at.channels, staging + p * stride);
  }
}

template <class T>
void scale(T* tile, int64_t width, int64_t rows, int64_t count, T factor) {
  for (int64_t c = 0; c < rows; ++c)
    for (int64_t j = 0; j < padded<T>(count); j += kLanes<T>)
      store(tile + c * width + j, load(tile + c * width + j) * factor);
}

// ---------------------------------------------------------------- Gram matrix

// 4 x kTileColumns sums of products of rows, in registers over the whole block: two loads feed at least two and a half
// multiplications. A lane adds up one product in every kLanes, so a block of 512 gives chains of 32 in float32.
template <class T>
inline void gram_tile(const T* left, const T* right, int64_t width, int64_t whole, double factor, double* sums) {
  constexpr int W = kLanes<T>, J = kTileColumns, N = 4 * J;
  Vec<T> sum[N] = {};
  for (int64_t k = 0; k < whole; k += W) {
    Vec<T> a[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) a[i] = load(left + i * width + k);
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      const Vec<T> b = load(right + j * width + k);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[4 * j + i] += a[i] * b;
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < N; g += W) {
    const Vec<T> total = lane_sums<T>(sum + g);
    for (int i = 0; i < W; ++i) sums[g + i] += factor * static_cast<double>(total[i]);
  }
}

template <class T>
void gram(const T* tile, int64_t width, int64_t rows, int64_t count, double factor, double* sums) {
  // 16 rows of a block (32 KiB) stay in the first-level cache while the others stream past, four at a time: each line that
  // comes from the second level is used four times.
  constexpr int64_t kPanel = 16;
  const int64_t whole = padded<T>(count), tiles = rows / 4;
  for (int64_t panel = 0; panel < rows; panel += kPanel)
    for (int64_t j = panel; j < rows; j += 4)
      for (int64_t i = panel; i <= least(j, panel + kPanel - 4); i += 4)
        for (int64_t part = 0; part < 4; part += kTileColumns)
          gram_tile(tile + i * width, tile + (j + part) * width, width, whole, factor,
                    sums + sum_tile(i / 4, j / 4, tiles) + 4 * part);
}

// ---------------------------------------------------------------- projection

template <class T, int K, int V>
inline void project_strip(const T* tile, int64_t width, int64_t rows, const T* u, int64_t u_stride, T* out) {
  Vec<T> sum[K][V] = {};
  for (int64_t c = 0; c < rows; ++c) {
    Vec<T> m[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) m[v] = load(tile + c * width + v * kLanes<T>);
#pragma GCC unroll 4
    for (int t = 0; t < K; ++t) {
      const Vec<T> weight = broadcast(u[c * u_stride + t]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[t][v] += weight * m[v];
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < K; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + t * width + v * kLanes<T>, sum[t][v]);
}

template <class T, int K, int V>
inline void update_strip(const T* tile, int64_t width, int64_t rows, int64_t count, const T* u, int64_t u_stride,
                         const T* weights, T* out, int64_t out_stride, bool past) {
  Vec<T> w[K][V];
#pragma GCC unroll 4
  for (int t = 0; t < K; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[t][v] = load(weights + t * width + v * kLanes<T>);
  for (int64_t c = 0; c < rows; ++c) {
    Vec<T> m[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) m[v] = load(tile + c * width + v * kLanes<T>);
#pragma GCC unroll 4
    for (int t = 0; t < K; ++t) {
      const Vec<T> weight = broadcast(u[c * u_stride + t]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) m[v] += weight * w[t][v];
    }
    T* to = out + c * out_stride;
    if (past) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) stream(to + v * kLanes<T>, m[v]);
    } else if (count >= V * kLanes<T>) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store_anywhere(to + v * kLanes<T>, m[v]);
    } else {
      alignas(64) T rest[V * kLanes<T>];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(rest + v * kLanes<T>, m[v]);
      for (int64_t j = 0; j < count; ++j) put<T>(to, j, rest[j]);
    }
  }
}

// One strip, all r components, at most four at a time (what the registers hold). Every group but the last leaves its result in
// the tile.
template <class T, int V>
inline void apply_strip(T* tile, int64_t width, int64_t rows, int64_t count, const T* before, const T* after,
                        int64_t u_stride, int64_t r, T* weights, T* out, int64_t out_stride, bool past) {
#define ASVP_BY_COUNT(k, call)                       \
  switch (k) {                                       \
    case 1: { constexpr int K = 1; call; break; }    \
    case 2: { constexpr int K = 2; call; break; }    \
    case 3: { constexpr int K = 3; call; break; }    \
    default: { constexpr int K = 4; call; break; }   \
  }
  for (int64_t t = 0; t < r; t += 4)
    ASVP_BY_COUNT(r - t, (project_strip<T, K, V>(tile, width, rows, before + t, u_stride, weights + t * width)))
  for (int64_t t = 0; t < r; t += 4) {
    const bool last = t + 4 >= r;
    T* to = last ? out : tile;
    const int64_t stride = last ? out_stride : width, end = last ? count : V * kLanes<T>;
    ASVP_BY_COUNT(r - t, (update_strip<T, K, V>(tile, width, rows, end, after + t, u_stride, weights + t * width, to, stride,
                                                last && past)))
  }
}

template <class T>
void apply(T* tile, int64_t width, int64_t rows, int64_t count, const T* before, const T* after, int64_t u_stride,
           int64_t r, T* weights, T* out, int64_t out_stride, bool past) {
  constexpr int64_t kStrip = kStripVectors * kLanes<T>;
  int64_t j = 0;
  past = past && reinterpret_cast<uintptr_t>(out) % 64 == 0 && out_stride * static_cast<int64_t>(sizeof(T)) % 64 == 0;
  for (; j + kStrip <= count; j += kStrip)
    apply_strip<T, kStripVectors>(tile + j, width, rows, kStrip, before, after, u_stride, r, weights + j, out + j, out_stride,
                                  past);
  for (; j < count; j += kLanes<T>)
    apply_strip<T, 1>(tile + j, width, rows, count - j, before, after, u_stride, r, weights + j, out + j, out_stride, false);
  if (past) stream_end();
}

template <class T>
void project(const T* tile, int64_t width, int64_t rows, int64_t count, const T* u, int64_t u_stride, int64_t r, T* out) {
  constexpr int64_t kStrip = kStripVectors * kLanes<T>;
  for (int64_t t = 0; t < r; t += 4) {
    int64_t j = 0;
    const T* column = u + t;
    T* to = out + t * width;
    for (; j + kStrip <= count; j += kStrip)
      ASVP_BY_COUNT(r - t, (project_strip<T, K, kStripVectors>(tile + j, width, rows, column, u_stride, to + j)))
    for (; j < padded<T>(count); j += kLanes<T>)
      ASVP_BY_COUNT(r - t, (project_strip<T, K, 1>(tile + j, width, rows, column, u_stride, to + j)))
  }
#undef ASVP_BY_COUNT
}

}  // namespace
}  // namespace asvp

#include "eigen.inl"

namespace asvp {

extern const Kernels ASVP_KERNELS;
const Kernels ASVP_KERNELS = {
    ASVP_KERNELS_NAME,
    {pack<float>, scale<float>, gram<float>, project<float>, apply<float>, unpack<float>},
    {pack<double>, scale<double>, gram<double>, project<double>, apply<double>, unpack<double>},
    leading,
    leading_quick,
};

}  // namespace asvp
