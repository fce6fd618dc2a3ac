/* The two passes for x86 CPUs with AVX2. Compiled for any x86-64, called only where the CPU has it. */
#include "resample.h"

#ifdef HAVE_AVX2

#include <immintrin.h>
#include <stdlib.h>

#define AVX2 __attribute__((target("avx2")))
#define PRECISION_BITS (32 - 8 - 2)

/* Products of 8-bit pixels and 22-bit weights with 16-bit multipliers: weight = high * 2^LOW_BITS + low. */
#define LOW_BITS 11
#define HIGH(weight) ((int16_t)((weight) >> LOW_BITS))
#define LOW(weight) ((int16_t)((weight) & ((1 << LOW_BITS) - 1)))

/* Four taps become 32 numbers: the high parts of the first pair four times, of the second pair, then the low parts. */
static int
make_pairs(Weights *weights) {
    size_t groups = (size_t)weights->length * weights->taps / 4;
    int16_t *to = weights->pairs = aligned_alloc(64, groups * 64);
    if (!to) {
        return -1;
    }
    for (const int32_t *w = weights->weights; groups--; w += 4, to += 32) {
        for (int j = 0; j < 16; j++) {
            int32_t weight = w[j / 8 * 2 + (j & 1)];
            to[j] = HIGH(weight);
            to[j + 16] = LOW(weight);
        }
    }
    return 0;
}

/* Sums of output i in both lanes: the halves are still to be added. */
static inline __attribute__((always_inline)) AVX2 __m256i
across_one(const Weights *weights, const uint8_t *row, int origin, int i) {
    /* Lane 0 takes the colours of pixels 0 and 1 in turn, lane 1 those of pixels 2 and 3, each with a zero byte. */
    const __m256i split = _mm256_setr_epi8(
        0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1,
        8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1
    );
    const uint8_t *pixel = row + 4 * (size_t)(weights->first[i] - origin);
    const __m256i *w = (const __m256i *)(weights->pairs + (size_t)i * weights->taps * 8);
    __m256i high = _mm256_setzero_si256(), low = high;
    for (int k = weights->count[i]; k > 0; k -= 4, pixel += 16, w += 2) {
        __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixel));
        four = _mm256_shuffle_epi8(four, split);
        high = _mm256_add_epi32(high, _mm256_madd_epi16(four, _mm256_load_si256(w)));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(four, _mm256_load_si256(w + 1)));
    }
    return _mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS));
}

/* Adds the halves of two outputs and drops the fraction: output a in lane 0, b in lane 1. */
static inline __attribute__((always_inline)) AVX2 __m256i
finish_two(__m256i a, __m256i b) {
    const __m256i half = _mm256_set1_epi32(1 << (PRECISION_BITS - 1));
    __m256i sum = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    return _mm256_srai_epi32(_mm256_add_epi32(sum, half), PRECISION_BITS);
}

AVX2 static void
across_avx2(const Weights *weights, const uint8_t *row, int origin, uint8_t *out) {
    /* Packing leaves outputs 0 and 2 in lane 0, 1 and 3 in lane 1, four bytes each of which three are wanted. */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
    const __m128i rgb = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const int last = weights->length - 1;
    for (int i = 0; i <= last; i += 4, out += 12) {
        __m256i sums[4];
        for (int j = 0; j < 4; j++) { /* beyond the end the last output again: into the padding */
            sums[j] = across_one(weights, row, origin, i + j < last ? i + j : last);
        }
        __m256i words = _mm256_packs_epi32(finish_two(sums[0], sums[1]), finish_two(sums[2], sums[3]));
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, words), order);
        _mm_storeu_si128((__m128i *)out, _mm_shuffle_epi8(_mm256_castsi256_si128(bytes), rgb));
    }
}

AVX2 static void
down_avx2(const uint8_t *const *rows, const int32_t *weights, int count, int bytes, uint8_t *out) {
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (PRECISION_BITS - 1));
    for (int at = 0; at < bytes; at += 32) {
        __m256i high[4] = {zero, zero, zero, zero}, low[4] = {half, half, half, half};
        for (int k = 0; k < count; k += 2) {
            int other = k + 1 < count; /* an odd row is paired with itself and the weight 0 */
            int32_t w0 = weights[k], w1 = other ? weights[k + 1] : 0;
            __m256i w_high = _mm256_set1_epi32((uint16_t)HIGH(w0) | (int32_t)((uint32_t)HIGH(w1) << 16));
            __m256i w_low = _mm256_set1_epi32((uint16_t)LOW(w0) | (int32_t)((uint32_t)LOW(w1) << 16));
            __m256i a = _mm256_loadu_si256((const __m256i *)(rows[k] + at));
            __m256i b = _mm256_loadu_si256((const __m256i *)(rows[k + other] + at));
            __m256i ab[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
            for (int j = 0; j < 4; j++) {
                __m256i pairs = j & 1 ? _mm256_unpackhi_epi8(ab[j / 2], zero) : _mm256_unpacklo_epi8(ab[j / 2], zero);
                high[j] = _mm256_add_epi32(high[j], _mm256_madd_epi16(pairs, w_high));
                low[j] = _mm256_add_epi32(low[j], _mm256_madd_epi16(pairs, w_low));
            }
        }
        for (int j = 0; j < 4; j++) {
            low[j] = _mm256_add_epi32(low[j], _mm256_slli_epi32(high[j], LOW_BITS));
            low[j] = _mm256_srai_epi32(low[j], PRECISION_BITS);
        }
        /* packs undo the unpacks: both work within lanes */
        __m256i words[2] = {_mm256_packs_epi32(low[0], low[1]), _mm256_packs_epi32(low[2], low[3])};
        _mm256_storeu_si256((__m256i *)(out + at), _mm256_packus_epi16(words[0], words[1]));
    }
}

const Kernel avx2_kernel = {"avx2", make_pairs, across_avx2, down_avx2};

#else
typedef int nothing_here; /* an empty file is no C */
#endif
