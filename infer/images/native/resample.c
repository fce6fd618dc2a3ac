/* Weights and sums as in Pillow's Resample.c: double weights, rounded to 22-bit fixed point, int32 sums. */
#include "resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PRECISION_BITS (32 - 8 - 2)
#define HALF (1 << (PRECISION_BITS - 1))

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

static void
down_portable(const uint8_t *const *rows, const int32_t *weights, int count, int bytes, uint8_t *out) {
    enum { BLOCK = 32 }; /* a fixed number, which compilers turn into vector code */
    for (int at = 0; at < bytes; at += BLOCK) {
        int32_t sums[BLOCK];
        for (int j = 0; j < BLOCK; j++) {
            sums[j] = HALF;
        }
        for (int k = 0; k < count; k++) {
            const uint8_t *row = rows[k] + at;
            for (int j = 0; j < BLOCK; j++) {
                sums[j] += row[j] * weights[k];
            }
        }
        for (int j = 0; j < BLOCK; j++) {
            out[at + j] = clip8(sums[j]);
        }
    }
}

static int
nothing_to_prepare(Weights *weights) {
    (void)weights;
    return 0;
}

const Kernel portable_kernel = {"portable", nothing_to_prepare, across_portable, down_portable};

const Kernel *
best_kernel(void) {
#ifdef HAVE_AVX2
    if (__builtin_cpu_supports("avx2")) {
        return &avx2_kernel;
    }
#endif
    return &portable_kernel;
}
