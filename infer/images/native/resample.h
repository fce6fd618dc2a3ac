/* Pillow's 8-bit resampling, for the pixels that survive the crop only. No Python in here. */
#ifndef IRESNET_RESAMPLE_H
#define IRESNET_RESAMPLE_H

#include <stdint.h>

/* Bytes behind a row that a kernel may read, and behind a result that it may write. */
#define ROW_PADDING 32

enum { BILINEAR = 1, BICUBIC = 2 }; /* half the width of the kernel in output pixels */

/* One axis of a resize: `size` source pixels become `resized`, of which `length` from `start` survive. */
typedef struct {
    int size, resized, start, length;
    int pad; /* black output pixels before the first that survives */
} Axis;

/* Filter weights of an axis. Output i is the sum over k < count[i] of weights[i * taps + k] * source[first[i] + k]. */
typedef struct {
    int length, taps; /* taps: the largest count, rounded up to 4; weights behind count[i] are 0 */
    int *first, *count;
    int32_t *weights;
    int16_t *pairs; /* the same weights in the form that a kernel's across() wants; NULL for none */
} Weights;

/* torchvision's Resize + CenterCrop of one axis. */
Axis axis_plan(int size, int resized, int crop);

/* 0, or -1 without memory. `mirrored`: outputs and source pixels are both counted from the far end. */
int weights_init(Weights *weights, const Axis *axis, int filter, int mirrored);
void weights_free(Weights *weights);

/* The two passes. All kernels give the same bytes. */
typedef struct {
    const char *name;
    /* Called once for weights that go to across(): 0, or -1 without memory. */
    int (*prepare)(Weights *weights);
    /* An RGBX row, whose pixel 0 is pixel `origin` of the axis, to `length` RGB pixels. */
    void (*across)(const Weights *weights, const uint8_t *row, int origin, uint8_t *out);
    /* The weighted sum of `count` rows of `bytes` bytes. */
    void (*down)(const uint8_t *const *rows, const int32_t *weights, int count, int bytes, uint8_t *out);
} Kernel;

extern const Kernel portable_kernel;
#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2 1
extern const Kernel avx2_kernel;
#endif
/* The fastest that this CPU has. */
const Kernel *best_kernel(void);

#endif
