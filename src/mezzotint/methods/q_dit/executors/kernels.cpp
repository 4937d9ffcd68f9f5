// Fused kernels of grouped integer linear layers (own design; the arithmetic is that of arXiv 2406.17343).
//
//   Y[i,j] = b[j] + sum_u sX[i,u] sW[j,u] ( sum_k (qX - ZX)(qW - ZW) )      u: groups of g input channels
//
// The inner sum is exact in 32-bit integers: products qX qW on the integer unit, minus ZX CW + ZW D, where CW is the sum
// of qW over the group and D that of (qX - ZX). Activations are unsigned (0..255); weights are signed (-128..127), that
// is, stored code minus 2^(b-1), and so is ZW. Weights stay packed in memory: every task expands one panel of 64 rows
// into its own scratch, which all rows of the activations then share.
//
// No header of torch is used: a plain C interface, called through ctypes, compiles in seconds.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define MZ_X86 1
#include <cpuid.h>
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#define TARGET_VNNI __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#if defined(__linux__) && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define MZ_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

enum Level { PORTABLE = 0, AVX2 = 1, VNNI = 2, AMX = 3 };
constexpr int PANEL = 64;   // output channels that are expanded together
constexpr int LANES = 16;   // independent partial sums, so that compilers may use vector registers

struct Input {
    const uint8_t* codes;   // [rows, width]
    const float* scale;     // [rows, groups]
    const int32_t* zero;    // [rows, groups]
    const int32_t* total;   // [rows, groups], D
    int64_t rows;
};

struct Weight {
    const uint8_t* packed;  // [rows, row_bytes]
    int64_t row_bytes;
    int bits;
    const float* scale;     // [rows, groups]
    const int32_t* zero;    // [rows, groups], centred; null when all are zero
    int64_t rows, width, group;
    int64_t groups() const { return width / group; }
    const uint8_t* row(int64_t j) const { return packed + j * row_bytes; }
};

int threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// ---------------------------------------------------------------------------------------------- unpacking

INLINE void expand_row(const uint8_t* row, int bits, int64_t width, int8_t* out) {
    const int offset = 1 << (bits - 1), mask = (1 << bits) - 1;
    int64_t k = 0;
    if (bits == 8) {
        for (; k < width; ++k) out[k] = int8_t(row[k] ^ 0x80);
        return;
    }
    if (bits == 4) {
        const int64_t pairs = width / 2;
        for (int64_t p = 0; p < pairs; ++p) {
            out[2 * p] = int8_t((row[p] & 15) - 8);
            out[2 * p + 1] = int8_t((row[p] >> 4) - 8);
        }
        if (width & 1) out[width - 1] = int8_t((row[pairs] & 15) - 8);
        return;
    }
    if (bits == 6) {
        for (; k + 4 <= width; k += 4, row += 3) {
            const uint8_t a = row[0], b = row[1], c = row[2];
            out[k] = int8_t((a & 63) - 32);
            out[k + 1] = int8_t(((a >> 6) | ((b & 15) << 2)) - 32);
            out[k + 2] = int8_t(((b >> 4) | ((c & 3) << 4)) - 32);
            out[k + 3] = int8_t((c >> 2) - 32);
        }
    }
    uint32_t buffer = 0;
    for (int filled = 0; k < width; ++k, filled -= bits, buffer >>= bits) {
        if (filled < bits) {
            buffer |= uint32_t(*row++) << filled;
            filled += 8;
        }
        out[k] = int8_t(int(buffer & mask) - offset);
    }
}

INLINE int32_t dot(const uint8_t* x, const int8_t* w, int64_t n) {
    int32_t sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += int32_t(x[k]) * int32_t(w[k]);
    return sum;
}

INLINE float dot(const float* x, const float* w, int64_t n) {
    float sums[LANES] = {0};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int l = 0; l < LANES; ++l) sums[l] += x[k + l] * w[k + l];
    float sum = 0;
    for (int l = 0; l < LANES; ++l) sum += sums[l];
    for (; k < n; ++k) sum += x[k] * w[k];
    return sum;
}

INLINE void dequantise_row(const Weight& w, int64_t j, int8_t* expanded, float* out) {
    expand_row(w.row(j), w.bits, w.width, expanded);
    for (int64_t u = 0; u < w.groups(); ++u) {
        const float scale = w.scale[j * w.groups() + u];
        const int32_t zero = w.zero ? w.zero[j * w.groups() + u] : 0;
        for (int64_t k = u * w.group; k < (u + 1) * w.group; ++k) out[k] = scale * float(expanded[k] - zero);
    }
}

// ---------------------------------------------------------------------------------------------- activations

// One group of one token, with the range measured here; false when a number is not finite.
INLINE bool quantise_group(const float* x, int64_t n, int bits, bool symmetric, uint8_t* codes, float* scale_out,
                           int32_t* zero_out, int32_t* total_out) {
    float lows[LANES] = {0}, highs[LANES] = {0}, wrong[LANES] = {0};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int l = 0; l < LANES; ++l) {
            const float v = x[k + l];
            lows[l] = v < lows[l] ? v : lows[l];
            highs[l] = v > highs[l] ? v : highs[l];
            wrong[l] += v * 0.0f;
        }
    float low = 0, high = 0, nonfinite = 0;
    for (int l = 0; l < LANES; ++l) {
        low = std::min(low, lows[l]);
        high = std::max(high, highs[l]);
        nonfinite += wrong[l];
    }
    for (; k < n; ++k) {
        low = x[k] < low ? x[k] : low;
        high = x[k] > high ? x[k] : high;
        nonfinite += x[k] * 0.0f;
    }
    const float highest = float((1 << bits) - 1);
    float scale = symmetric ? std::max(-low, high) / float((1 << (bits - 1)) - 1) : (high - low) / highest;
    if (!(nonfinite == 0.0f) || !std::isfinite(scale)) return false;
    scale = std::max(scale, 1e-8f);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, as torch does.
    const float magic = 12582912.0f;
    const float measured = std::min(std::max((-low / scale + magic) - magic, 0.0f), highest);
    const float zero = symmetric ? float(1 << (bits - 1)) : measured;
    int32_t total = 0;
    for (int64_t c = 0; c < n; ++c) {
        float q = ((x[c] / scale + magic) - magic) + zero;
        q = q < 0.0f ? 0.0f : q;
        q = q > highest ? highest : q;
        const int32_t code = int32_t(q);
        codes[c] = uint8_t(code);
        total += code;
    }
    *scale_out = scale;
    *zero_out = int32_t(zero);
    *total_out = total - int32_t(n) * int32_t(zero);
    return true;
}

INLINE bool quantise_rows(const float* x, int64_t begin, int64_t end, int64_t width, int64_t group, int bits,
                          bool symmetric, uint8_t* codes, float* scale, int32_t* zero, int32_t* total) {
    const int64_t groups = width / group;
    bool sound = true;
    for (int64_t i = begin; i < end; ++i)
        for (int64_t u = 0; u < groups; ++u) {
            const int64_t at = i * width + u * group, to = i * groups + u;
            sound &= quantise_group(x + at, group, bits, symmetric, codes + at, scale + to, zero + to, total + to);
        }
    return sound;
}

// ---------------------------------------------------------------------------------------------- any processor

INLINE void linear_rows(const Input& in, const Weight& w, const float* bias, float* out, int64_t begin, int64_t end) {
    std::vector<int8_t> expanded(w.width);
    std::vector<int32_t> sums(w.groups());
    const int64_t groups = w.groups(), g = w.group;
    for (int64_t j = begin; j < end; ++j) {
        expand_row(w.row(j), w.bits, w.width, expanded.data());
        for (int64_t u = 0; u < groups; ++u) {
            sums[u] = 0;
            for (int64_t k = u * g; k < (u + 1) * g; ++k) sums[u] += expanded[k];
        }
        for (int64_t i = 0; i < in.rows; ++i) {
            float y = bias ? bias[j] : 0.0f;
            for (int64_t u = 0; u < groups; ++u) {
                int32_t p = dot(in.codes + i * w.width + u * g, expanded.data() + u * g, g);
                p -= in.zero[i * groups + u] * sums[u];
                if (w.zero) p -= in.total[i * groups + u] * w.zero[j * groups + u];
                y += in.scale[i * groups + u] * (w.scale[j * groups + u] * float(p));
            }
            out[i * w.rows + j] = y;
        }
    }
}

INLINE void weight_only_rows(const float* x, int64_t rows, const Weight& w, const float* bias, float* out,
                             int64_t begin, int64_t end) {
    std::vector<int8_t> expanded(w.width);
    std::vector<float> row(w.width);
    for (int64_t j = begin; j < end; ++j) {
        dequantise_row(w, j, expanded.data(), row.data());
        for (int64_t i = 0; i < rows; ++i)
            out[i * w.rows + j] = dot(x + i * w.width, row.data(), w.width) + (bias ? bias[j] : 0.0f);
    }
}

INLINE void dequantise_rows(const Weight& w, float* out, int64_t begin, int64_t end) {
    std::vector<int8_t> expanded(w.width);
    for (int64_t j = begin; j < end; ++j) dequantise_row(w, j, expanded.data(), out + j * w.width);
}

// The same loops, compiled for each instruction set.
#ifdef MZ_X86
#define AT_LEVELS(RESULT, NAME, PARAMETERS, ARGUMENTS)                     \
    RESULT NAME##_portable PARAMETERS { return NAME ARGUMENTS; }            \
    TARGET_AVX2 RESULT NAME##_avx2 PARAMETERS { return NAME ARGUMENTS; }    \
    TARGET_VNNI RESULT NAME##_avx512 PARAMETERS { return NAME ARGUMENTS; }
#define CALL(LEVEL, NAME, ARGUMENTS)          \
    ((LEVEL) >= VNNI ? NAME##_avx512 ARGUMENTS : (LEVEL) == AVX2 ? NAME##_avx2 ARGUMENTS : NAME##_portable ARGUMENTS)
#else
#define AT_LEVELS(RESULT, NAME, PARAMETERS, ARGUMENTS) \
    RESULT NAME##_portable PARAMETERS { return NAME ARGUMENTS; }
#define CALL(LEVEL, NAME, ARGUMENTS) NAME##_portable ARGUMENTS
#endif

AT_LEVELS(bool, quantise_rows,
          (const float* x, int64_t begin, int64_t end, int64_t width, int64_t group, int bits, bool symmetric,
           uint8_t* codes, float* scale, int32_t* zero, int32_t* total),
          (x, begin, end, width, group, bits, symmetric, codes, scale, zero, total))
AT_LEVELS(void, linear_rows,
          (const Input& in, const Weight& w, const float* bias, float* out, int64_t begin, int64_t end),
          (in, w, bias, out, begin, end))
AT_LEVELS(void, weight_only_rows,
          (const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t begin, int64_t end),
          (x, rows, w, bias, out, begin, end))
AT_LEVELS(void, dequantise_rows, (const Weight& w, float* out, int64_t begin, int64_t end), (w, out, begin, end))

// ---------------------------------------------------------------------------------------------- panels

#ifdef MZ_X86

// Scratch of one task: 64 output channels, laid out as both integer units read them, [k / 4][channel][k % 4].
struct Panel {
    std::vector<int8_t> rows, codes;
    std::vector<int32_t> sums, zeros;   // [groups][64]
    std::vector<float> scales, bias;    // [groups][64], [64]
    int8_t* aligned = nullptr;
};

// Sixteen rows of sixteen 32-bit words, transposed.
TARGET_VNNI inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int p = 0; p < 4; ++p) {
        t[p] = _mm512_shuffle_i32x4(r[p], r[4 + p], 0x88);
        t[4 + p] = _mm512_shuffle_i32x4(r[p], r[4 + p], 0xdd);
        t[8 + p] = _mm512_shuffle_i32x4(r[8 + p], r[12 + p], 0x88);
        t[12 + p] = _mm512_shuffle_i32x4(r[8 + p], r[12 + p], 0xdd);
    }
    for (int p = 0; p < 4; ++p) {
        r[p] = _mm512_shuffle_i32x4(t[p], t[8 + p], 0x88);
        r[8 + p] = _mm512_shuffle_i32x4(t[p], t[8 + p], 0xdd);
        r[4 + p] = _mm512_shuffle_i32x4(t[4 + p], t[12 + p], 0x88);
        r[12 + p] = _mm512_shuffle_i32x4(t[4 + p], t[12 + p], 0xdd);
    }
}

// The panel's numbers beside its codes: scales, zero points, bias; zero where the weight has no such row.
void gather_numbers(const Weight& w, const float* bias, int64_t first, Panel& panel) {
    const int64_t groups = w.groups(), rows = std::min<int64_t>(PANEL, w.rows - first);
    panel.scales.assign(groups * PANEL, 0.0f);
    panel.zeros.assign(groups * PANEL, 0);
    panel.bias.assign(PANEL, 0.0f);
    for (int64_t c = 0; c < rows; ++c) {
        if (bias) panel.bias[c] = bias[first + c];
        for (int64_t u = 0; u < groups; ++u) {
            panel.scales[u * PANEL + c] = w.scale[(first + c) * groups + u];
            if (w.zero) panel.zeros[u * PANEL + c] = w.zero[(first + c) * groups + u];
        }
    }
}

// Needs groups of whole fours.
TARGET_VNNI void expand_panel(const Weight& w, const float* bias, int64_t first, Panel& panel) {
    const int64_t words = w.width / 4;
    gather_numbers(w, bias, first, panel);
    panel.rows.resize(16 * w.width);
    panel.codes.resize(w.width * PANEL + 64);
    panel.aligned = reinterpret_cast<int8_t*>((reinterpret_cast<uintptr_t>(panel.codes.data()) + 63) & ~uintptr_t(63));
    for (int64_t block = 0; block < PANEL; block += 16) {
        for (int64_t c = 0; c < 16; ++c) {
            int8_t* row = panel.rows.data() + c * w.width;
            if (first + block + c < w.rows) expand_row(w.row(first + block + c), w.bits, w.width, row);
            else std::memset(row, 0, w.width);
        }
        for (int64_t k = 0; k < words; k += 16) {
            const int64_t count = std::min<int64_t>(16, words - k);
            const __mmask16 mask = __mmask16((1u << count) - 1);
            __m512i r[16];
            for (int c = 0; c < 16; ++c) r[c] = _mm512_maskz_loadu_epi32(mask, panel.rows.data() + c * w.width + 4 * k);
            transpose(r);
            for (int64_t i = 0; i < count; ++i) _mm512_store_si512(panel.aligned + ((k + i) * PANEL + block) * 4, r[i]);
        }
    }
    panel.sums.resize(w.groups() * PANEL);
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t u = 0; u < w.groups(); ++u)
        for (int c = 0; c < 4; ++c) {
            __m512i sum = _mm512_setzero_si512();
            for (int64_t k = u * w.group / 4; k < (u + 1) * w.group / 4; ++k)
                sum = _mm512_dpbusd_epi32(sum, ones, _mm512_load_si512(panel.aligned + k * PANEL * 4 + c * 64));
            _mm512_storeu_si512(panel.sums.data() + u * PANEL + c * 16, sum);
        }
}

// What the zero points take from the integer products of row i and sixteen channels.
TARGET_VNNI inline __m512i without_zeros(__m512i p, const Panel& panel, int64_t at, int32_t zero, int32_t total,
                                         bool asymmetric) {
    p = _mm512_sub_epi32(p, _mm512_mullo_epi32(_mm512_set1_epi32(zero), _mm512_loadu_si512(panel.sums.data() + at)));
    if (!asymmetric) return p;
    const __m512i zeros = _mm512_loadu_si512(panel.zeros.data() + at);
    return _mm512_sub_epi32(p, _mm512_mullo_epi32(_mm512_set1_epi32(total), zeros));
}

TARGET_VNNI inline void store_row(float* out, const Weight& w, int64_t first, const float* tile) {
    const int64_t columns = std::min<int64_t>(PANEL, w.rows - first);
    for (int64_t c = 0; c < columns; c += 16) {
        const __mmask16 mask = __mmask16((1u << std::min<int64_t>(16, columns - c)) - 1);
        _mm512_mask_storeu_ps(out + first + c, mask, _mm512_loadu_ps(tile + c));
    }
}

// Adds one group's products of one row to its float tile.
TARGET_VNNI inline void add_group(const Input& in, const Weight& w, const Panel& panel, int64_t row, int64_t u,
                                  int first, int count, const int32_t* products, float* tile) {
    const int64_t at = row * w.groups() + u;
    const __m512 scale = _mm512_set1_ps(in.scale[at]);
    for (int c = 0; c < count; c += 16) {
        const int64_t column = u * PANEL + first + c;
        const __m512i p = without_zeros(_mm512_load_si512(products + c), panel, column, in.zero[at], in.total[at],
                                        w.zero != nullptr);
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(p), _mm512_loadu_ps(panel.scales.data() + column));
        float* y = tile + first + c;
        _mm512_store_ps(y, _mm512_fmadd_ps(scaled, scale, _mm512_load_ps(y)));
    }
}

// R rows of activations by 64 channels: 4 R sums in registers, the float tile in the first-level cache. The sums are
// named one by one, since compilers keep an array of them in memory.
#define ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(r) __m512i s##r##0 = nothing, s##r##1 = nothing, s##r##2 = nothing, s##r##3 = nothing;
#define STEP(r)                                                  \
    if constexpr (r < R) {                                       \
        int32_t four;                                            \
        std::memcpy(&four, x + r * w.width + 4 * k, 4);          \
        const __m512i a = _mm512_set1_epi32(four);               \
        s##r##0 = _mm512_dpbusd_epi32(s##r##0, a, w0);           \
        s##r##1 = _mm512_dpbusd_epi32(s##r##1, a, w1);           \
        s##r##2 = _mm512_dpbusd_epi32(s##r##2, a, w2);           \
        s##r##3 = _mm512_dpbusd_epi32(s##r##3, a, w3);           \
    }
#define FINISH(r)                                             \
    if constexpr (r < R) {                                    \
        _mm512_store_si512(products[r], s##r##0);             \
        _mm512_store_si512(products[r] + 16, s##r##1);        \
        _mm512_store_si512(products[r] + 32, s##r##2);        \
        _mm512_store_si512(products[r] + 48, s##r##3);        \
    }
template <int R>
TARGET_VNNI void vnni_tile(const Input& in, const Weight& w, const Panel& panel, int64_t i0, int64_t first, float* out) {
    alignas(64) float tile[R][PANEL];
    alignas(64) int32_t products[R][PANEL];
    const int64_t steps = w.group / 4;
    const __m512i nothing = _mm512_setzero_si512();
    for (int r = 0; r < R; ++r) std::memcpy(tile[r], panel.bias.data(), sizeof(tile[r]));
    for (int64_t u = 0; u < w.groups(); ++u) {
        const uint8_t* x = in.codes + i0 * w.width + u * w.group;
        const int8_t* codes = panel.aligned + u * steps * PANEL * 4;
        ROWS(BEGIN)
        for (int64_t k = 0; k < steps; ++k, codes += PANEL * 4) {
            const __m512i w0 = _mm512_load_si512(codes), w1 = _mm512_load_si512(codes + 64);
            const __m512i w2 = _mm512_load_si512(codes + 128), w3 = _mm512_load_si512(codes + 192);
            ROWS(STEP)
        }
        ROWS(FINISH)
        for (int r = 0; r < R; ++r) add_group(in, w, panel, i0 + r, u, 0, PANEL, products[r], tile[r]);
    }
    for (int r = 0; r < R; ++r) store_row(out + (i0 + r) * w.rows, w, first, tile[r]);
}

void vnni_rows(const Input& in, const Weight& w, const Panel& panel, int64_t first, float* out, int64_t i, int64_t end) {
    for (; i + 6 <= end; i += 6) vnni_tile<6>(in, w, panel, i, first, out);
    switch (end - i) {
        case 5: return vnni_tile<5>(in, w, panel, i, first, out);
        case 4: return vnni_tile<4>(in, w, panel, i, first, out);
        case 3: return vnni_tile<3>(in, w, panel, i, first, out);
        case 2: return vnni_tile<2>(in, w, panel, i, first, out);
        case 1: return vnni_tile<1>(in, w, panel, i, first, out);
    }
}

// ---------------------------------------------------------------------------------------------- AMX

#if defined(MZ_EMULATED_TILES)
// The tile unit in plain loops: the same addresses and the same order, for processors that have none.
#define MZ_AMX 1
#define TARGET_AMX TARGET_VNNI
thread_local int8_t tiles[8][16][64];
void tile_begin() {}
void tile_end() {}
#define TILE_ZERO(T) std::memset(tiles[T], 0, sizeof(tiles[T]))
#define TILE_LOAD(T, P, STRIDE) \
    for (int r_ = 0; r_ < 16; ++r_) std::memcpy(tiles[T][r_], (const int8_t*)(P) + r_ * (STRIDE), 64)
#define TILE_STORE(T, P, STRIDE) \
    for (int r_ = 0; r_ < 16; ++r_) std::memcpy((int8_t*)(P) + r_ * (STRIDE), tiles[T][r_], 64)
void tile_multiply(int c, int a, int b) {
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n) {
            int32_t sum;
            std::memcpy(&sum, &tiles[c][m][4 * n], 4);
            for (int k = 0; k < 64; ++k) sum += int32_t(uint8_t(tiles[a][m][k])) * tiles[b][k / 4][4 * n + k % 4];
            std::memcpy(&tiles[c][m][4 * n], &sum, 4);
        }
}
#define TILE_MULTIPLY(C, A, B) tile_multiply(C, A, B)
#elif defined(MZ_AMX)
#define TARGET_AMX \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")))
TARGET_AMX void tile_begin() {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config;
    std::memset(&config, 0, sizeof(config));
    config.palette = 1;
    for (int t = 0; t < 8; ++t) config.bytes[t] = 64, config.rows[t] = 16;
    _tile_loadconfig(&config);
}
TARGET_AMX void tile_end() { _tile_release(); }
#define TILE_ZERO(T) _tile_zero(T)
#define TILE_LOAD(T, P, STRIDE) _tile_loadd(T, P, STRIDE)
#define TILE_STORE(T, P, STRIDE) _tile_stored(T, P, STRIDE)
#define TILE_MULTIPLY(C, A, B) _tile_dpbusd(C, A, B)
#endif

#ifdef MZ_AMX
// 32 rows by 32 channels, two by two tiles; `x` has 32 rows, `half` is 0 or 32.
TARGET_AMX void amx_products(const uint8_t* x, const Weight& w, const Panel& panel, int64_t u, int half, int32_t* out) {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    // Tile loads do not tell every compiler that they read memory: what was written before must stand there.
    asm volatile("" ::: "memory");
    for (int64_t k = u * w.group; k < (u + 1) * w.group; k += 64) {
        const int8_t* codes = panel.aligned + k * PANEL + half * 4;
        TILE_LOAD(4, x + k, w.width);
        TILE_LOAD(5, x + 16 * w.width + k, w.width);
        TILE_LOAD(6, codes, PANEL * 4);
        TILE_LOAD(7, codes + 64, PANEL * 4);
        TILE_MULTIPLY(0, 4, 6);
        TILE_MULTIPLY(1, 4, 7);
        TILE_MULTIPLY(2, 5, 6);
        TILE_MULTIPLY(3, 5, 7);
    }
    TILE_STORE(0, out, 128);
    TILE_STORE(1, out + 16, 128);
    TILE_STORE(2, out + 16 * 32, 128);
    TILE_STORE(3, out + 16 * 32 + 16, 128);
}

TARGET_AMX void amx_block(const Input& in, const Weight& w, const Panel& panel, int64_t i0, int64_t rows, const uint8_t* x,
                          float tile[][PANEL]) {
    alignas(64) int32_t products[32 * 32];
    for (int64_t u = 0; u < w.groups(); ++u)
        for (int half = 0; half < PANEL; half += 32) {
            amx_products(x, w, panel, u, half, products);
            for (int64_t r = 0; r < rows; ++r) add_group(in, w, panel, i0 + r, u, half, 32, products + r * 32, tile[r]);
        }
}

TARGET_AMX void amx_rows(const Input& in, const Weight& w, const Panel& panel, int64_t first, float* out, int64_t i,
                         int64_t end) {
    std::vector<uint8_t> padded;
    alignas(64) float tile[32][PANEL];
    tile_begin();
    for (; i < end; i += 32) {
        const int64_t rows = std::min<int64_t>(32, end - i);
        const uint8_t* x = in.codes + i * w.width;
        if (rows < 32) {
            padded.assign(32 * w.width, 0);
            std::memcpy(padded.data(), x, rows * w.width);
            x = padded.data();
        }
        for (int64_t r = 0; r < rows; ++r) std::memcpy(tile[r], panel.bias.data(), sizeof(tile[r]));
        amx_block(in, w, panel, i, rows, x, tile);
        for (int64_t r = 0; r < rows; ++r) store_row(out + (i + r) * w.rows, w, first, tile[r]);
    }
    tile_end();
}
#endif

void linear_panels(int level, const Input& in, const Weight& w, const float* bias, float* out) {
    const int64_t panels = (w.rows + PANEL - 1) / PANEL;
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>((2 * threads() + panels - 1) / panels, in.rows / 96));
    const int64_t part = ((in.rows + parts - 1) / parts + 95) / 96 * 96;   // a multiple of both tiles' rows
#pragma omp parallel
    {
        Panel panel;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < panels * parts; ++task) {
            const int64_t first = task / parts * PANEL, i = task % parts * part;
            const int64_t end = std::min(in.rows, i + part);
            if (i >= end) continue;
            expand_panel(w, bias, first, panel);
#ifdef MZ_AMX
            if (level == AMX) { amx_rows(in, w, panel, first, out, i, end); continue; }
#endif
            vnni_rows(in, w, panel, first, out, i, end);
        }
    }
}

#endif  // MZ_X86

#if defined(MZ_X86) && !defined(MZ_EMULATED_TILES)
bool amx_permitted() {
#ifdef MZ_AMX
    unsigned a, b, c, d;
    const bool present = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 25 & 1);
    // Linux gives the tile registers' state only to a process that asks: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
    return present && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}
#elif defined(MZ_X86)
bool amx_permitted() { return true; }
#endif

}  // namespace

extern "C" {

// The best level that this processor and its system can run.
int mz_level() {
#ifdef MZ_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx2 && avx512 && __builtin_cpu_supports("avx512vnni")) return amx_permitted() ? AMX : VNNI;
    return avx2 ? AVX2 : PORTABLE;
#else
    return PORTABLE;
#endif
}

// Dynamic activation codes, one range a token and group; 0 when a number is not finite.
int mz_quantise(int level, const float* x, int64_t rows, int64_t width, int64_t group, int bits, int symmetric,
                uint8_t* codes, float* scale, int32_t* zero, int32_t* total) {
    int sound = 1;
#pragma omp parallel for schedule(static) reduction(&& : sound)
    for (int64_t i = 0; i < rows; ++i)
        sound = CALL(level, quantise_rows,
                     (x, i, i + 1, width, group, bits, symmetric != 0, codes, scale, zero, total)) && sound;
    (void)level;
    return sound;
}

// A grouped integer linear layer; returns the level that ran, since a group must be whole in steps of the unit.
int mz_linear(int level, const uint8_t* codes, const float* x_scale, const int32_t* x_zero, const int32_t* x_total,
              int64_t x_rows, const uint8_t* packed, int64_t row_bytes, int bits, const float* scale,
              const int32_t* zero, int64_t rows, int64_t width, int64_t group, const float* bias, float* out) {
    const Input in{codes, x_scale, x_zero, x_total, x_rows};
    const Weight w{packed, row_bytes, bits, scale, zero, rows, width, group};
    if (level == AMX && group % 64) level = VNNI;
#ifdef MZ_X86
    if (level >= VNNI && group % 4 == 0) {
        linear_panels(level, in, w, bias, out);
        return level;
    }
#endif
    if (level >= VNNI) level = AVX2;
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < rows; j += 16)
        CALL(level, linear_rows, (in, w, bias, out, j, std::min(rows, j + 16)));
    return level;
}

// The weight alone is quantised: expanded row by row, multiplied in float32.
void mz_weight_only(int level, const float* x, int64_t x_rows, const uint8_t* packed, int64_t row_bytes, int bits,
                    const float* scale, const int32_t* zero, int64_t rows, int64_t width, int64_t group,
                    const float* bias, float* out) {
    const Weight w{packed, row_bytes, bits, scale, zero, rows, width, group};
    (void)level;
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < rows; j += 16)
        CALL(level, weight_only_rows, (x, x_rows, w, bias, out, j, std::min(rows, j + 16)));
}

// The whole weight in float32.
void mz_dequantise(int level, const uint8_t* packed, int64_t row_bytes, int bits, const float* scale,
                   const int32_t* zero, int64_t rows, int64_t width, int64_t group, float* out) {
    const Weight w{packed, row_bytes, bits, scale, zero, rows, width, group};
    (void)level;
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < rows; j += 16) CALL(level, dequantise_rows, (w, out, j, std::min(rows, j + 16)));
}

}  // extern "C"
