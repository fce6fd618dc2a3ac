/* Weights and sums as in Pillow's Resample.c: double weights, rounded to 22-bit fixed point, int32 sums. */
#include "resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PRECISION_BITS (32 - 8 - 2)
#define HALF (1 << (PRECISION_BITS - 1))

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAVE_AVX2 1
#include <immintrin.h>
#endif

Axis
axis_plan(int size, int resized, int crop) {
    Axis axis = {size, resized, 0, resized, 0};
    if (resized < crop) {
        axis.pad = (crop - resized) / 2;
    } else {
        int rest = resized - crop;
        axis.start = rest / 2;
        axis.start += (rest & 1) & axis.start; /* a half is rounded to the even neighbour */
        axis.length = crop;
    }
    return axis;
}

static double
filter_value(int filter, double x) {
    if (x < 0.0) {
        x = -x;
    }
    if (filter == BILINEAR) {
        return x < 1.0 ? 1.0 - x : 0.0;
    }
    if (x < 1.0) {
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    }
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

/* The source pixels of output `i`: returns the first, sets their number. */
static int
window(const Axis *axis, double scale, double support, int i, int *count) {
    double center = (i + 0.5) * scale;
    int first = (int)(center - support + 0.5);
    int last = (int)(center + support + 0.5);
    if (first < 0) {
        first = 0;
    }
    if (last > axis->size) {
        last = axis->size;
    }
    *count = last - first;
    return first;
}

int
weights_init(Weights *weights, const Axis *axis, int filter, int mirrored) {
    double scale = (double)axis->size / axis->resized;
    double filterscale = scale < 1.0 ? 1.0 : scale;
    double support = filter * filterscale;
    double inverse = 1.0 / filterscale;
    int length = axis->length, taps = 1, count, i, k;

    memset(weights, 0, sizeof(*weights));
    for (i = 0; i < length; i++) {
        window(axis, scale, support, axis->start + i, &count);
        taps = count > taps ? count : taps;
    }
    taps = (taps + 3) & ~3;
    weights->length = length;
    weights->taps = taps;
    weights->first = malloc(length * sizeof(int));
    weights->count = malloc(length * sizeof(int));
    weights->weights = calloc((size_t)length * taps, sizeof(int32_t));
    double *exact = malloc(taps * sizeof(double));
    if (!weights->first || !weights->count || !weights->weights || !exact) {
        free(exact);
        weights_free(weights);
        return -1;
    }

    for (i = 0; i < length; i++) {
        int at = axis->start + i, row = mirrored ? length - 1 - i : i;
        int first = window(axis, scale, support, at, &count);
        double center = (at + 0.5) * scale, sum = 0.0;
        int32_t *out = weights->weights + (size_t)row * taps;
        for (k = 0; k < count; k++) {
            exact[k] = filter_value(filter, (k + first - center + 0.5) * inverse);
            sum += exact[k];
        }
        for (k = 0; k < count; k++) {
            double value = sum != 0.0 ? exact[k] / sum : exact[k];
            value *= 1 << PRECISION_BITS;
            out[mirrored ? count - 1 - k : k] = (int32_t)(value < 0 ? value - 0.5 : value + 0.5);
        }
        weights->first[row] = mirrored ? axis->size - first - count : first;
        weights->count[row] = count;
    }
    free(exact);
    return 0;
}

void
weights_free(Weights *weights) {
    free(weights->first);
    free(weights->count);
    free(weights->weights);
    free(weights->pairs);
    memset(weights, 0, sizeof(*weights));
}

static inline uint8_t
clip8(int32_t sum) {
    sum >>= PRECISION_BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
}

static void
across_portable(const Weights *weights, const uint8_t *row, int origin, uint8_t *out) {
    for (int i = 0; i < weights->length; i++, out += 3) {
        const int32_t *w = weights->weights + (size_t)i * weights->taps;
        const uint8_t *pixel = row + 4 * (size_t)(weights->first[i] - origin);
        int32_t red = HALF, green = HALF, blue = HALF;
        for (int k = 0; k < weights->count[i]; k++, pixel += 4) {
            red += pixel[0] * w[k];
            green += pixel[1] * w[k];
            blue += pixel[2] * w[k];
        }
        out[0] = clip8(red);
        out[1] = clip8(green);
        out[2] = clip8(blue);
    }
}

/* Blocks of a fixed size, which every compiler turns into vector code. */
#define DOWN(name, attribute)                                                                               \
    attribute static void name(                                                                             \
        const uint8_t *const *rows, const int32_t *weights, int count, int bytes, uint8_t *out              \
    ) {                                                                                                     \
        enum { BLOCK = 32 };                                                                                \
        for (int at = 0; at < bytes; at += BLOCK) {                                                         \
            int32_t sums[BLOCK];                                                                            \
            int width = bytes - at < BLOCK ? bytes - at : BLOCK;                                            \
            for (int j = 0; j < BLOCK; j++) {                                                               \
                sums[j] = HALF;                                                                             \
            }                                                                                               \
            for (int k = 0; k < count; k++) { /* rows have ROW_PADDING bytes behind them */                 \
                const uint8_t *row = rows[k] + at;                                                          \
                int32_t w = weights[k];                                                                     \
                for (int j = 0; j < BLOCK; j++) {                                                           \
                    sums[j] += row[j] * w;                                                                  \
                }                                                                                           \
            }                                                                                               \
            if (width == BLOCK) {                                                                           \
                for (int j = 0; j < BLOCK; j++) {                                                           \
                    out[at + j] = clip8(sums[j]);                                                           \
                }                                                                                           \
            } else {                                                                                        \
                for (int j = 0; j < width; j++) {                                                           \
                    out[at + j] = clip8(sums[j]);                                                           \
                }                                                                                           \
            }                                                                                               \
        }                                                                                                   \
    }

DOWN(down_portable, )

static int
nothing_to_prepare(Weights *weights) {
    (void)weights;
    return 0;
}

const Kernel portable_kernel = {"portable", nothing_to_prepare, across_portable, down_portable};

#ifdef HAVE_AVX2
DOWN(down_avx2, __attribute__((target("avx2"))))

/* Products of 8-bit pixels and 22-bit weights with 16-bit multipliers: weight = high * 2^LOW_BITS + low. */
#define LOW_BITS 11

/* Four taps are 32 16-bit numbers: per tap pair (high, high) four times, then the same of the low parts. */
static int
make_pairs(Weights *weights) {
    size_t groups = (size_t)weights->length * weights->taps / 4;
    int16_t *to = weights->pairs = aligned_alloc(32, groups * 64);
    if (!to) {
        return -1;
    }
    for (const int32_t *w = weights->weights; groups--; w += 4, to += 32) {
        for (int j = 0; j < 16; j++) {
            int32_t weight = w[(j / 8) * 2 + (j & 1)];
            to[j] = (int16_t)(weight >> LOW_BITS);
            to[j + 16] = (int16_t)(weight & ((1 << LOW_BITS) - 1));
        }
    }
    return 0;
}

__attribute__((target("avx2"))) static void
across_avx2(const Weights *weights, const uint8_t *row, int origin, uint8_t *out) {
    /* Lane 0 takes the colours of pixels 0 and 1 in turn, lane 1 those of pixels 2 and 3, each with a zero byte. */
    const __m256i split = _mm256_setr_epi8(
        0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1,
        8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1
    );
    const __m128i half = _mm_set1_epi32(HALF);
    const size_t step = (size_t)weights->taps * 8;
    const int16_t *pairs = weights->pairs;
    for (int i = 0; i < weights->length; i++, out += 3, pairs += step) {
        const uint8_t *pixel = row + 4 * (size_t)(weights->first[i] - origin);
        const __m256i *w = (const __m256i *)pairs;
        __m256i high = _mm256_setzero_si256(), low = high;
        for (int k = 0; k < weights->count[i]; k += 4, pixel += 16, w += 2) {
            __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixel));
            four = _mm256_shuffle_epi8(four, split);
            high = _mm256_add_epi32(high, _mm256_madd_epi16(four, _mm256_load_si256(w)));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(four, _mm256_load_si256(w + 1)));
        }
        low = _mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS));
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
        sum = _mm_srai_epi32(_mm_add_epi32(sum, half), PRECISION_BITS);
        sum = _mm_packs_epi32(sum, sum);
        int32_t packed = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
        memcpy(out, &packed, 4); /* the fourth byte is the next pixel's, or padding */
    }
}
#endif

const Kernel *
best_kernel(void) {
#ifdef HAVE_AVX2
    static const Kernel avx2_kernel = {"avx2", make_pairs, across_avx2, down_avx2};
    if (__builtin_cpu_supports("avx2")) {
        return &avx2_kernel;
    }
#endif
    return &portable_kernel;
}
