/* How a stored picture must be turned to stand upright: EXIF orientation, tag 0x0112 (EXIF 2.32, 4.6.4 A). */
#ifndef IRESNET_EXIF_H
#define IRESNET_EXIF_H

#include <stddef.h>
#include <stdint.h>

/* From stored to upright: mirror the stored columns, the stored rows, then exchange rows and columns. */
typedef struct {
    int mirror_x, mirror_y, swap;
} Turn;

/* What the APP1 segments of a file say; starts zeroed. */
typedef struct {
    int found;       /* EXIF segments */
    int orientation; /* 0 for none */
    int odd;         /* damaged, or written in a way that is left to a full reader */
    int xmp;         /* an XMP packet names an orientation; it counts where EXIF does not */
} ExifSearch;

void exif_segment(ExifSearch *search, const uint8_t *data, size_t size);

/* 0, or -1: the orientation must be read by a full reader. */
int exif_turn(const ExifSearch *search, Turn *turn);

#endif
