/* A JPEG file to the pixels that the network sees. No Python in here. */
#ifndef IRESNET_JPEG_H
#define IRESNET_JPEG_H

#include <stddef.h>
#include <stdint.h>

#include "resample.h"

typedef struct {
    int resize, crop; /* pixels: short side after resizing, side of the centre square */
    int filter;       /* BILINEAR or BICUBIC */
    int tall_first;   /* whether the height of tall images is resized first, as Pillow 13 does */
    int shortest;     /* 0, or: decode at 1/2, 1/4, 1/8 of the size while the short side keeps so many pixels */
    double max_pixels;
    const Kernel *kernel;
} Options;

/* The upright, resized and cropped image, RGB, `crop` x `crop` x 3 bytes, to `out`.

   NULL on success, else why this file is left to another decoder, a constant string: it is damaged, truncated, or of
   a kind that is not decoded here. `out` then holds anything. */
const char *jpeg_to_input(const uint8_t *data, size_t size, const Options *options, uint8_t *out);

#endif
